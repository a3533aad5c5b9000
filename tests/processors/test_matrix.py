"""The numerical tests and the demo's answers under every instruction set that this machine can pretend to have.

The rest of the tests run on the machine as it is, with torch's own number of threads.
"""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from benchmarks.processors.answers import Demo, threshold_of
from benchmarks.processors.noise import noisy_processor
from benchmarks.processors.table import REFERENCE, RESULTS, distance
from benchmarks.processors.variants import AS_IT_IS, VARIANTS, Variant
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel
from blora.posterior.inject import eject

NUMERICAL = (
    "bank",
    "posterior",
    "layer",
    "inducing",
    "families",
    "scoring",
    "fork",
    "prefix",
    "architecture",
    "vocabulary",
)
# Every 53rd ticket of the demo's test file.
STEP = 53

PRETENDED = [v for v in VARIANTS if v.seed is None and v.name != AS_IT_IS]
NOISY = [v for v in VARIANTS if v.seed is not None]


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


def each(variants: list[Variant]) -> pytest.MarkDecorator:
    """Run a test as each of some processors, but for those that this machine cannot be, which are skipped."""
    skips = [[pytest.mark.skip(reason=v.lacking)] if v.lacking is not None else [] for v in variants]
    return pytest.mark.parametrize(
        "variant", [pytest.param(v, id=v.name, marks=marks) for v, marks in zip(variants, skips, strict=True)]
    )


def test_a_process_with_noise_computes_with_noise() -> None:
    """In bfloat16, another noise with every seed, each value one step away at most; in float32 none."""
    code = (
        "import torch; x = torch.ones(1, 64); w = torch.rand(512, 64, generator=torch.Generator().manual_seed(0));"
        "print([torch.nn.functional.linear(x.to(d), w.to(d)).double().tolist() for d in (torch.float32, torch.bfloat16)])"
    )

    def found(seed: int | None) -> tuple[Tensor, Tensor]:
        environment = Variant("a test", seed=seed).variables()
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        exact, rounded = json.loads(done.stdout)
        return torch.tensor(exact), torch.tensor(rounded)

    plain, first, second = found(None), found(1), found(2)
    assert torch.equal(plain[0], first[0])
    assert not torch.equal(first[1], second[1])
    for noisy in (first, second):
        step = 2.0**-7 * plain[1].abs()
        assert ((noisy[1] - plain[1]).abs() <= step).all()
        assert 0.5 < (noisy[1] != plain[1]).float().mean() < 0.8


def test_the_table_is_of_the_demo_as_it_is_calibrated() -> None:
    for file in RESULTS.glob("*.json"):
        for row in json.loads(file.read_text()).get("rows", []):
            assert row["threshold"] == threshold_of(row["dtype"])


@each([*PRETENDED, *NOISY[:1]])
def test_numerical_tests_pass(variant: Variant) -> None:
    files = [f"tests/blora/test_{name}.py" for name in NUMERICAL]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not model", *files]
    done = subprocess.run(command, cwd=ROOT, env=variant.variables(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]


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
