"""vLLM and torch behind the same server code, on the same questions: do they decide alike, and how long does each take?

`python -m benchmarks.vllm DATA --vllm-python PATH` starts a vLLM from that interpreter's environment (`make test-vllm`
makes one), and asks both engines 200 ARC-Easy questions by their labels, under every draw of the adapter of
`benchmarks.serving` that has a posterior in all adapted layers.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.server_process import ROOT
from benchmarks.serving.adapters import prepare
from benchmarks.vllm_process import vllm
from blora.base_model import load_base_model
from blora.server.engines.protocol import Engine, Job
from blora.server.engines.torch_engine import TorchEngine
from blora.server.engines.vllm_engine import VllmEngine
from blora.server.settings import Settings
from blora.training.provenance import machine, revision
from blora.training.rows.examples import Example, read_examples

RESULT = ROOT / "benchmarks" / "results" / "vllm" / "result.json"
N_QUESTIONS, AT_ONCE = 200, 8


async def answers(engine: Engine, examples: Sequence[Example], n_samples: int) -> tuple[list[Tensor], float]:
    """Mean probabilities (C,) of each question, and the seconds for all."""
    [handle] = (await engine.load()).adapters
    jobs = []
    for example in examples:
        row = await engine.pack(handle, prompt=example.prompt, messages=None, choices=example.choices, scoring="label")
        jobs.append(Job(handle, row, n_samples, None, None))
    await engine.run(jobs[:AT_ONCE])  # warm
    began = time.perf_counter()
    found: list[Tensor] = []
    for start in range(0, len(jobs), AT_ONCE):
        found += [each.probs.mean(0) for each in await engine.run(jobs[start : start + AT_ONCE])]
    return found, time.perf_counter() - began


def measure(data: Path, python: Path) -> dict[str, Any]:
    """Return the result object."""
    adapter = prepare(data).everywhere
    n_samples = json.loads((adapter / "bayesian_config.json").read_text())["sampling"]["n_samples"]
    examples = read_examples(str(data / "arc_easy_test.jsonl")).examples[:N_QUESTIONS]
    common: dict[str, Any] = {"adapters": (f"one={adapter}",), "timeout_s": 600.0}

    async def ask(engine: Engine) -> tuple[list[Tensor], float]:
        try:
            return await answers(engine, examples, n_samples)
        finally:
            await engine.close()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(load_base_model().model.name_or_path)
        with vllm(python, model, folder / "log") as url:
            there = Settings(engine="vllm", engine_url=url, engine_folder=folder / "draws", **common)
            found, vllm_s = asyncio.run(ask(VllmEngine(there)))
    expected, torch_s = asyncio.run(ask(TorchEngine(Settings(max_batch_tokens=8192, **common))))
    apart = torch.tensor([float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)])
    labels = [example.label for example in examples]
    same = [int(a.argmax() == b.argmax()) for a, b in zip(found, expected, strict=True)]
    right = {
        name: [int(probs.argmax()) == label for probs, label in zip(given, labels, strict=True)]
        for name, given in (("torch", expected), ("vllm", found))
    }
    return {
        "n_questions": len(examples),
        "n_samples": n_samples,
        "same_decision": sum(same) / len(same),
        "mean_distance": float(apart.mean()),
        "p99_distance": float(apart.quantile(0.99)),
        "worst_distance": float(apart.max()),
        "right": {name: sum(hits) / len(hits) for name, hits in right.items()},
        "ms_a_question": {"torch": 1e3 * torch_s / len(examples), "vllm": 1e3 * vllm_s / len(examples)},
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=ROOT.parent / "shared" / "data")
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.vllm_python)
    result |= {"machine": machine(), "revision": revision(), "command": "python -m benchmarks.vllm"}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
