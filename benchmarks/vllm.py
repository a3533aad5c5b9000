"""vLLM and torch behind the same server code, on the same questions: do they decide alike, and how long does each take?

`python -m benchmarks.vllm DATA --adapter KIND --vllm-python PATH` starts a vLLM from that interpreter's environment
(`make test-vllm` makes one), and asks both engines ARC-Easy questions under every draw of an adapter, on all cores.
`scores` has a posterior over a LoRA in ten layers, briefly trained, and is asked 200 by labels, of vLLM in bfloat16.
`head` has a head on the last layer's states, which `blora train --depths last` trains on the training questions, and is
asked 1,000, of vLLM in the dtype that torch takes by itself; so is the default head, which reads five depths, in torch
alone.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.command_line import run_blora
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from benchmarks.vllm_process import vllm
from blora.adapter import read_config
from blora.base_model import load_base_model, native_dtypes
from blora.config import ScoringName
from blora.server.engines.protocol import Engine, Job
from blora.server.engines.torch_engine import TorchEngine
from blora.server.engines.vllm_engine import VllmEngine
from blora.server.settings import Settings
from blora.training.rows.examples import Example, read_examples

RESULTS = ROOT / "benchmarks" / "results" / "vllm"
WORK = ROOT / "runs" / "vllm"
N_QUESTIONS: dict[ScoringName, int] = {"label": 200, "text": 1000}
AT_ONCE = 8
# The time of an answer does not depend on how long its adapter was trained.
SCORES = ("--head", "none", "--layers", "last:10", "--n-samples", "16", "--epochs", "1")
SCORES += ("--train-examples", "200", "--validation-examples", "100")
# For a head: what torch takes by itself.
DTYPES: dict[ScoringName, str] = {"label": "bfloat16", "text": native_dtypes(torch.device("cpu"))[0]}


def trained(data: Path, name: str, *more: str) -> Path:
    """Return an adapter, trained with further flags if `runs/vllm` does not have it yet."""
    folder = WORK / name
    if not folder.is_dir():
        run_blora("train", "--data", str(data / "arc_easy_train.jsonl"), "--output", str(folder), *more)
    return folder


async def answers(engine: Engine, examples: Sequence[Example], scoring: ScoringName) -> tuple[list[Tensor], float]:
    """Mean probabilities (C,) of each question, and the seconds for all."""
    try:
        [handle] = (await engine.load()).adapters
        jobs = []
        for example in examples:
            row = await engine.pack(
                handle, prompt=example.prompt, messages=None, choices=example.choices, scoring=scoring
            )
            jobs.append(Job(handle, row, handle.bank.n_samples, None, None))
        await engine.run(jobs[:AT_ONCE])  # warm
        began = time.perf_counter()
        found: list[Tensor] = []
        for start in range(0, len(jobs), AT_ONCE):
            found += [each.probs.mean(0) for each in await engine.run(jobs[start : start + AT_ONCE])]
        return found, time.perf_counter() - began
    finally:
        await engine.close()


def measure(data: Path, python: Path, adapter: Path, scoring: ScoringName) -> dict[str, Any]:
    """Return the result object of an adapter in both engines."""
    examples = read_examples(str(data / "arc_easy_test.jsonl")).examples[: N_QUESTIONS[scoring]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = Path(load_base_model().model.name_or_path)
        with vllm(python, model, folder / "log", dtype=DTYPES[scoring], pooling=scoring == "text") as url:
            there = settings(adapter, engine="vllm", engine_url=url, engine_folder=folder / "draws")
            found, vllm_s = asyncio.run(answers(VllmEngine(there), examples, scoring))
    expected, torch_s = in_torch(adapter, examples, scoring)
    apart = torch.tensor([float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)])
    same = [int(a.argmax() == b.argmax()) for a, b in zip(found, expected, strict=True)]
    return {
        "n_questions": len(examples),
        "dtype": DTYPES[scoring],
        "n_samples": read_config(adapter).sampling.n_samples,
        "same_decision": fmean(same),
        "mean_distance": float(apart.mean()),
        "p99_distance": float(apart.quantile(0.99)),
        "worst_distance": float(apart.max()),
        "right": {"torch": right(expected, examples), "vllm": right(found, examples)},
        "ms_a_question": {"torch": 1e3 * torch_s / len(examples), "vllm": 1e3 * vllm_s / len(examples)},
    }


def in_torch(adapter: Path, examples: Sequence[Example], scoring: ScoringName) -> tuple[list[Tensor], float]:
    """Return what `answers` returns of the engine in this process."""
    return asyncio.run(answers(TorchEngine(settings(adapter, max_batch_tokens=8192)), examples, scoring))


def settings(adapter: Path, **more: Any) -> Settings:
    """Return the settings of an engine with one adapter."""
    return Settings(adapters=(f"one={adapter}",), timeout_s=600.0, **more)


def right(probs: Sequence[Tensor], examples: Sequence[Example]) -> float:
    """Return the accuracy of mean probabilities."""
    return fmean(int(one.argmax()) == example.label for one, example in zip(probs, examples, strict=True))


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=ROOT.parent / "shared" / "data")
    parser.add_argument("--vllm-python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--adapter", choices=("scores", "head"), required=True)
    arguments = parser.parse_args()
    data, python = arguments.data, arguments.vllm_python
    if arguments.adapter == "scores":
        result = measure(data, python, trained(data, "scores", *SCORES), "label")
    else:
        result = measure(data, python, trained(data, "last", "--depths", "last"), "text")
        examples = read_examples(str(data / "arc_easy_test.jsonl")).examples[: result["n_questions"]]
        probs, seconds = in_torch(trained(data, "five"), examples, "text")
        result["five_depths"] = {"right": right(probs, examples), "ms_a_question": 1e3 * seconds / len(examples)}
    command = f"python -m benchmarks.vllm --adapter {arguments.adapter}"
    result |= about(command)
    write(RESULTS / f"{arguments.adapter}.json", result)


if __name__ == "__main__":
    main()
