"""The demo's answers on this processor: `python -m benchmarks.processors.answers STEP DTYPE ...` writes them as JSON.

They are by dtype. Every STEP-th of the demo's tickets, a third of its test file, is asked alone, and in one large batch
with the others.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.server_process import ADAPTER, TRIAGE
from blora.adapter import attach, load_adapter
from blora.adapter.calibration_file import read_calibrations
from blora.base_model import BaseModel, load_base_model
from blora.config import AdapterConfig
from blora.decision.calibration import Level
from blora.decision.temperature import temper
from blora.inference.architecture import check_packing
from blora.inference.branches import score_all
from blora.inference.fork import why_whole
from blora.inference.packing import PackedRow
from blora.posterior.bank import SampleBank
from blora.scores import SCORES
from blora.training.rows.examples import read_examples
from blora.training.rows.packed import pack_examples

__all__ = ["Answers", "Demo", "threshold_of"]

# Padded tokens x draws of a forward pass: the server's default.
BATCH_TOKENS = 4096
# Of the test file, every third ticket: in emulated bfloat16 each takes most of a second.
EVERY = 3


class Answers(NamedTuple):
    """Probabilities (N, C), and certainty (N,): the score of the demo's policy, so that larger values are surer."""

    probabilities: Tensor
    certainty: Tensor


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo adapter on its base model, ready to answer."""

    base: BaseModel
    config: AdapterConfig
    bank: SampleBank

    @classmethod
    def on(cls, base: BaseModel) -> "Demo":
        """Prove that the embedded base model packs and put the demo on it, as a server does at its start."""
        check_packing(base)
        adapter = load_adapter(ADAPTER, base)
        attach(base, adapter)
        sampling = adapter.config.sampling
        bank = SampleBank.draw(adapter.posterior, adapter.digest, sampling.n_samples, sampling.seed)
        return cls(base, adapter.config, bank)

    def tickets(self, step: int = 1) -> list[PackedRow]:
        """Return every step-th of the tickets as tokens."""
        prompt = self.config.prompt
        examples = read_examples(str(TRIAGE / "test.jsonl"), choices=prompt.choices)
        return [labelled.row for labelled in pack_examples(examples, self.base, prompt)][:: EVERY * step]

    def answers(self, rows: list[PackedRow]) -> Answers:
        """Return what a server would answer to tickets that it gets together, before guesses."""
        log_probs = score_all(self.base.model, rows, self.bank.draws, max_batch_tokens=BATCH_TOKENS)
        probs = temper(log_probs, self.config.sampling.temperature, self.config.sampling.lapse)
        score = SCORES[_level(self.base.dtype_name).score]
        return Answers(probs.mean(0), score.certainty(score.values(probs)))


def threshold_of(dtype: str) -> float:
    """Return the certainty from which the demo answers by its calibration for a dtype."""
    level = _level(dtype)
    return SCORES[level.score].certainty(torch.tensor(level.threshold, dtype=torch.float64)).item()


def _level(dtype: str) -> Level:
    [calibration] = [entry for entry in read_calibrations(ADAPTER) if entry.binding.dtype == dtype]
    return calibration.default_level


def _answers(dtype: str, step: int) -> dict[str, Any]:
    demo = Demo.on(load_base_model(device="cpu", dtype=dtype))
    rows = demo.tickets(step)
    began = time.perf_counter()
    alone = [demo.answers([row]) for row in rows]
    seconds = time.perf_counter() - began
    together = demo.answers(rows)
    return {
        "alone": _rounded(torch.cat([one.probabilities for one in alone])),
        "batched": _rounded(together.probabilities),
        "alone_certainty": [round(value, 6) for one in alone for value in one.certainty.tolist()],
        "batched_certainty": [round(value, 6) for value in together.certainty.tolist()],
        "seconds": seconds,
        "runs_whole_because": why_whole(demo.base.model),
    }


def _rounded(probs: Tensor) -> list[list[float]]:
    return [[round(p, 6) for p in row] for row in probs.tolist()]


if __name__ == "__main__":
    sys.stdout.write(json.dumps({dtype: _answers(dtype, int(sys.argv[1])) for dtype in sys.argv[2:]}))
