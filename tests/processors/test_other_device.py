"""What is computed on a device that is not the CPU: no tensor is left behind, and the answers are the same.

The device is that of `tests.processors.other_device`, in processes of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.server_process import ROOT
from tests.processors.commands import KINDS, N_PROOF

OTHER = "tests.processors.other_device"
ENGINES = [f"tests/server/engines/{name}.py" for name in ("test_torch_engine", "test_head_engine")]


def run(*arguments: str) -> str:
    """Run Python, which is expected to succeed, and return what it printed."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


# What a GPU refuses, with x on the device, and what torch says then.
REFUSED = {
    "x + torch.ones(3)": "Expected all tensors to be on the same device",
    "torch.cat([x, torch.ones(3)])": "Expected all tensors to be on the same device",
    "torch.ones(3)[torch.arange(2, device=x.device)]": "Expected all tensors to be on the same device",
    "x.normal_(generator=torch.Generator())": "Expected a 'other' device type for generator",
    "x.numpy()": "numpy",
}
REFUSE = """
import json, sys, torch
from blora.base_model import pick_device
from tests.processors.other_device import NAME

x, found = torch.zeros(3, device=NAME), {}
for code in json.loads(sys.argv[1]):
    try:
        found[code] = repr(eval(code))
    except (RuntimeError, TypeError) as exc:
        found[code] = str(exc)
accepted = str(pick_device(NAME)), (x + torch.tensor(2.0)).tolist(), x[torch.arange(2)].cpu().tolist()
print(json.dumps([found, accepted]))
"""


def test_it_refuses_what_a_gpu_refuses() -> None:
    found, accepted = json.loads(run("-c", REFUSE, json.dumps([*REFUSED])))
    assert {code: said for code, said in REFUSED.items() if said not in found[code]} == {}
    assert accepted == ["other:0", [2.0] * 3, [0.0] * 2]


def test_the_tests_of_the_engine_pass_on_it() -> None:
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", OTHER, "-m", "not model and not processor", *ENGINES)


def test_adapters_are_trained_calibrated_and_asked_on_it_as_on_the_cpu(tmp_path: Path) -> None:
    for device in ("cpu", "other"):
        (tmp_path / device).mkdir()
        run("-m", "tests.processors.commands", device, str(tmp_path / device))
    for kind in KINDS:
        here, there = (answers(tmp_path / device / f"{kind}.jsonl") for device in ("cpu", "other"))
        assert len(here) == len(there) == N_PROOF
        for answer, other in zip(here, there, strict=True):
            # A rank among the proof's 100 distances, of which rounding may exchange neighbours.
            assert other.pop("familiarity", None) == pytest.approx(answer.pop("familiarity", None), abs=0.03)
            assert other == pytest.approx(answer, abs=2e-3)


def answers(file: Path) -> list[dict[str, float]]:
    """Return the numbers of each answer in a file of `blora predict`."""
    lines = [json.loads(line)["prediction"] for line in file.read_text().splitlines()]
    return [
        {each["choice"]: each["probability"] for each in line["probabilities"]}
        | {name: line[name] for name in ("mutual_information", "familiarity") if name in line}
        for line in lines
    ]
