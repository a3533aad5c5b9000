"""Attacks on a real server: each is met as expected, and the server is afterwards what it was.

Those that take many seconds are made by `python -m benchmarks.faults.attacks` alone.
"""

from collections.abc import Iterator

import pytest

from benchmarks.faults.attacks.run import FAMILIES, attack, left_behind
from benchmarks.faults.attacks.spoilers import small_lora
from benchmarks.faults.attacks.target import Case, Target, said, target

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("attacks")) as running:
        before = running.handles
        yield running
        assert left_behind(running, before) <= 10


CASES = [
    pytest.param(case, id=f"{family}: {case.name}")
    for family, cases in FAMILIES.items()
    for case in cases
    if not case.slow
]


@pytest.mark.parametrize("case", CASES)
def test_an_attack_is_met_as_expected(victim: Target, case: Case) -> None:
    found = attack(victim, case)
    assert found["as_expected"], found


def test_the_lora_of_which_some_folders_are_spoiled_copies_answers(victim: Target) -> None:
    path = victim.copy("whole", source=small_lora(victim))
    assert said(victim.load("whole", path)) == "201"
    assert said(victim.ask(adapter="whole")) == "200"
    victim.unload("whole")
