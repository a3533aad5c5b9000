"""The demo's answers under every instruction set that this machine can pretend to have, and on a noisy processor."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from benchmarks.processors.answers import Demo, threshold_of
from benchmarks.processors.noise import noisy_processor
from benchmarks.processors.table import REFERENCE, RESULTS, distance
from benchmarks.processors.variants import Variant
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel
from blora.posterior.inject import eject
from tests.processors.pretended import PRETENDED, each

# Every 53rd ticket of the demo's test file.
STEP = 53


def reference(dtype: str) -> Tensor:
    """Return the probabilities (212, C) of the demo's test tickets on the machine that they were measured on."""
    return torch.tensor(json.loads(REFERENCE.read_text())["probabilities"][dtype])


def assert_decisions_hold(found: Tensor, expected: Tensor, dtype: str) -> None:
    """No ticket is answered here and withheld there, unless it lies as near to the threshold as answers were seen to move."""
    threshold, confidence = threshold_of(dtype), expected.amax(-1)
    changed = (found.amax(-1) >= threshold) != (confidence >= threshold)
    assert ((confidence - threshold).abs()[changed] <= distance(dtype)).all()
    sure = confidence >= 0.5 + distance(dtype)
    assert torch.equal(found.argmax(-1)[sure], expected.argmax(-1)[sure])


def test_the_table_is_of_the_demo_as_it_is_calibrated() -> None:
    for file in RESULTS.glob("*.json"):
        for row in json.loads(file.read_text()).get("rows", []):
            assert row["threshold"] == threshold_of(row["dtype"])


@pytest.mark.model
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each([v for v in PRETENDED if "ATEN_CPU_CAPABILITY" not in v.environment])
def test_the_demo_answers_as_elsewhere(variant: Variant, dtype: str) -> None:
    command = [sys.executable, "-m", "benchmarks.processors.answers", dtype, str(STEP)]
    done = subprocess.run(command, cwd=ROOT, env=variant.variables(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["runs_whole_because"] is None
    allowed = 1e-4 if dtype == "float32" else 2 * distance(dtype)
    for way in ("alone", "batched"):
        torch.testing.assert_close(torch.tensor(found[way]), reference(dtype)[::STEP], rtol=0, atol=allowed)
        assert_decisions_hold(torch.tensor(found[way]), reference(dtype)[::STEP], dtype)


@pytest.mark.model
def test_no_decision_of_the_demo_changes_far_from_its_threshold_on_a_noisy_processor(smollm2_bf16: BaseModel) -> None:
    with noisy_processor(7):
        demo = Demo.on(smollm2_bf16)
        found = demo.probabilities(demo.tickets())
    eject(smollm2_bf16.model)
    expected = reference("bfloat16")
    assert not torch.equal(found, expected)
    assert_decisions_hold(found, expected, "bfloat16")
