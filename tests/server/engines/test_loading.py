"""Warnings about adapters that can be loaded and cannot answer."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blora.adapter import load_adapter
from blora.base_model import load_base_model
from blora.config import MethodName
from blora.config.head import MOST_REFERENCE
from blora.decision.abstention import Policy
from blora.decision.familiarity import p_value
from blora.decision.gate import Gate
from blora.scores import SCORES
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.loading import handle_of, idle_familiarity
from blora.training.head.familiarity import fit_familiarity
from tests.server.fakes import handle

INFORMED = {"max_mutual_information": 0.1}


@pytest.mark.parametrize(
    ("policy", "n_samples", "method", "warned"),
    [
        (INFORMED, 1, "bayesian", True),
        (INFORMED, 4, "lora", True),
        (INFORMED, 2, "bayesian", False),
        ({"min_confidence": 0.5}, 1, "lora", False),
    ],
)
def test_an_adapter_without_the_draws_that_its_policy_needs_is_warned_of(
    policy: dict[str, float],
    n_samples: int,
    method: MethodName,
    warned: bool,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = load_base_model(str(folder / "tiny"), device="cpu", dtype="float32")
    adapter = load_adapter(folder / "one", base)
    posterior, sampling = (
        replace(adapter.config.posterior, method=method),
        replace(adapter.config.sampling, n_samples=n_samples),
    )
    config = replace(adapter.config, policy=policy, posterior=posterior, sampling=sampling)
    with caplog.at_level(logging.WARNING):
        handle_of(
            replace(adapter, config=config), device=torch.device("cpu"), dtype="float32", allow_uncalibrated=False
        )
    said = "Adapter one refuses every question that brings no policy: got policy max_mutual_information"
    assert (said in caplog.text) == warned


# Thresholds that no familiarity can fail

SOME_ROWS = (1, 2, 5, 6, 19, 20, 24, 48, 106, 225, 997, MOST_REFERENCE)
STATES = torch.randn(MOST_REFERENCE, 4, generator=torch.Generator().manual_seed(0))
FAMILIAR = fit_familiarity((0,), STATES[:24], STATES[24:48]).familiarity


def with_reference(n: int) -> AdapterHandle:
    """Return a handle with n reference rows."""
    reference = torch.arange(n, dtype=torch.float32)
    return handle("one", "sha256:" + "1" * 64, familiarity=replace(FAMILIAR, reference=reference))


@pytest.mark.parametrize("n", SOME_ROWS)
def test_a_threshold_is_idle_where_the_least_familiar_question_of_all_passes_it(n: int) -> None:
    one = with_reference(n)
    least = 1 / (n + 1)
    assert one.p_value(1e9) == p_value(torch.tensor([1e9]), torch.arange(n)).item()
    for limit in (1e-9, least / 2, least, least + 9e-7, least + 1.1e-6, 1.5 * least, 1.0):
        withholds = SCORES["familiarity"].fails(one.p_value(1e9), limit)
        assert (idle_familiarity(Policy(min_familiarity=limit), one) is None) == withholds
        assert withholds == (limit > least + 1e-6)


@pytest.mark.parametrize("n", SOME_ROWS)
def test_no_gate_is_idle(n: int) -> None:
    gate = Gate(max_false_alarms=0.05, n_beyond=0, reference=tuple(range(n)))
    assert idle_familiarity(Policy(min_familiarity=gate.min_familiarity), with_reference(n)) is None


def test_a_threshold_of_zero_withholds_nothing_on_purpose() -> None:
    assert idle_familiarity(Policy(min_familiarity=0.0), with_reference(5)) is None
    assert idle_familiarity(Policy(min_confidence=0.5), with_reference(5)) is None
