"""The demo's answers under every instruction set that this machine can pretend to have, and on a noisy processor."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.processors.answers import Answers, Demo, threshold_of
from benchmarks.processors.noise import noisy_processor
from benchmarks.processors.table import REFERENCE, RESULTS, certainty_distance, distance
from benchmarks.processors.variants import Variant
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel
from blora.posterior.inject import eject
from tests.processors.pretended import PRETENDED, each

DTYPES = ("float32", "bfloat16")
# Of the tickets, every 53rd.
STEP = 53


def reference(dtype: str, step: int = 1) -> Answers:
    """Return the answers to a third of the demo's test tickets on the machine that they were measured on."""
    kept = json.loads(REFERENCE.read_text())
    return Answers(*(torch.tensor(kept[name][dtype])[::step] for name in ("probabilities", "certainty")))


def assert_decisions_hold(found: Answers, expected: Answers, dtype: str) -> None:
    """No ticket is answered here and withheld there, unless it lies as near to the threshold as scores were seen to move."""
    threshold = threshold_of(dtype)
    changed = (found.certainty >= threshold) != (expected.certainty >= threshold)
    assert ((expected.certainty - threshold).abs()[changed] <= certainty_distance(dtype)).all()
    sure = expected.probabilities.amax(-1) >= 0.5 + distance(dtype)
    assert torch.equal(found.probabilities.argmax(-1)[sure], expected.probabilities.argmax(-1)[sure])


def test_the_table_is_of_the_demo_as_it_is_calibrated() -> None:
    for file in RESULTS.glob("*.json"):
        for row in json.loads(file.read_text()).get("rows", []):
            assert row["threshold"] == threshold_of(row["dtype"])


@pytest.mark.model
@each([v for v in PRETENDED if "ATEN_CPU_CAPABILITY" not in v.environment])
def test_the_demo_answers_as_elsewhere(variant: Variant) -> None:
    command = [sys.executable, "-m", "benchmarks.processors.answers", str(STEP), *DTYPES]
    done = subprocess.run(command, cwd=ROOT, env=variant.variables(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    by_dtype = json.loads(done.stdout)
    for dtype in DTYPES:
        found = by_dtype[dtype]
        assert found["runs_whole_because"] is None
        allowed = 1e-4 if dtype == "float32" else 2 * distance(dtype)
        for way in ("alone", "batched"):
            answers = Answers(torch.tensor(found[way]), torch.tensor(found[f"{way}_certainty"]))
            expected = reference(dtype, STEP)
            torch.testing.assert_close(answers.probabilities, expected.probabilities, rtol=0, atol=allowed)
            assert_decisions_hold(answers, expected, dtype)


@pytest.mark.model
def test_no_decision_of_the_demo_changes_far_from_its_threshold_on_a_noisy_processor(smollm2_bf16: BaseModel) -> None:
    with noisy_processor(7):
        demo = Demo.on(smollm2_bf16)
        found = demo.answers(demo.tickets())
    eject(smollm2_bf16.model)
    expected = reference("bfloat16")
    assert not torch.equal(found.probabilities, expected.probabilities)
    assert_decisions_hold(found, expected, "bfloat16")
