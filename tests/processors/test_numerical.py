"""The numerical tests under every instruction set that this machine can pretend to have.

The rest of the tests run on the machine as it is, with one thread.
"""

import json
import subprocess
import sys

import torch
from torch import Tensor

from benchmarks.processors.variants import Variant
from benchmarks.server_process import ROOT
from tests.processors.pretended import NOISY, WHOLE, each

NUMERICAL = (
    "posterior/test_bank",
    "posterior/test_posterior",
    "posterior/test_layer",
    "posterior/test_inducing",
    "posterior/test_families",
    "inference/test_scoring",
    "inference/test_fork",
    "inference/test_prefix",
    "inference/test_architecture",
    "inference/test_vocabulary",
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


@each([*WHOLE, *NOISY[:1]])
def test_numerical_tests_pass(variant: Variant) -> None:
    files = [f"tests/blora/{name}.py" for name in NUMERICAL]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not model", *files]
    done = subprocess.run(command, cwd=ROOT, env=variant.variables(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
