"""Attacks on a real server: each is met as expected, and the server is afterwards what it was.

Those that take many seconds are made by `python -m benchmarks.faults.attacks` alone.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults.attacks.run import FAMILIES, attack, left_behind
from benchmarks.faults.attacks.spoilers import field_twice, longer, small_lora, threshold
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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (threshold(-1.0, "predictive_entropy"), "= -1.0, expected a finite number of at least 0"),
        (threshold(2.0, "confidence"), "= 2.0, expected a number from 0 to 1.0"),
        (threshold(float("nan"), "confidence"), "Input should be a finite number"),
        (longer, "head.safetensors, which is not a safetensors file"),
        (field_twice, "got policy min_confidence = 2.0"),
    ],
)
def test_a_spoiled_adapter_is_refused_for_what_was_spoiled(
    victim: Target, spoil: Callable[[Path], None], message: str
) -> None:
    refused = victim.load("spoiled", victim.copy("spoiled", spoil))
    assert message in refused.json()["error"]["message"]


def test_the_lora_of_which_some_folders_are_spoiled_copies_answers(victim: Target) -> None:
    path = victim.copy("whole", source=small_lora(victim))
    assert said(victim.load("whole", path)) == "201"
    assert said(victim.ask(adapter="whole")) == "200"
    victim.unload("whole")
