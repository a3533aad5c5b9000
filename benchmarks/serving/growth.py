"""How the cost of an answer grows: with draws, rows in a batch, prompt, choices and adapters."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from benchmarks.serving.contenders import Engine, PlainLora
from blora.inference.packing import PackedRow
from blora.server.engines.handle import AdapterHandle

__all__ = ["FILLER", "grow", "in_turn"]

REPEATS = 3
FILLER = "The following question is one of many, and each has exactly one right answer among those listed. "
CHOICES = ("sunlight and water", "a telescope", "the force of gravity", "warm air rises")


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: milliseconds a question, plain LoRA's beside ours."""

    at: int
    lora_ms: float
    fixed_ms: float
    early_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "at": self.at,
            "lora_ms": self.lora_ms,
            "fixed_ms": self.fixed_ms,
            "early_ms": self.early_ms,
            "fixed_over_lora": self.fixed_ms / self.lora_ms,
            "early_over_lora": self.early_ms / self.lora_ms if self.early_ms is not None else None,
        }


def grow(engine: Engine, lora: PlainLora, rows: Sequence[PackedRow], far: Sequence[PackedRow]) -> dict[str, Any]:
    """Curves by what grows.

    Args:
        engine: ours.
        lora: the baseline.
        rows: some questions.
        far: some whose decision is far from its threshold.
    """
    few = list(rows[:16])
    return {
        "draws": [_point(engine, lora, few, s, at=s) for s in (1, 4, 16, 64)],
        "draws_far_from_the_threshold": [_point(engine, lora, far, s, at=s) for s in (16, 32, 64)],
        "rows": [_point(engine, lora, few[:n], 16, at=n) for n in (1, 2, 4, 8, 16)],
        "prompt_tokens": [_point(engine, lora, longer, 16, at=n) for n, longer in _prompts(engine)],
        "choices": [_point(engine, lora, more, 16, at=n) for n, more in _choices(engine)],
        "adapters": [
            _point(engine, lora, few, 16, at=n, handles=_copies(engine.late, n), early=False) for n in (1, 2, 4)
        ],
    }


def _point(
    engine: Engine,
    lora: PlainLora,
    rows: Sequence[PackedRow],
    n_samples: int,
    *,
    at: int,
    handles: Sequence[AdapterHandle] = (),
    early: bool = True,
) -> Point:
    """Time the three variants in turn, a few times."""
    ways: dict[str, Callable[[], object]] = {
        "lora": lambda: lora.packed(rows),
        "fixed": lambda: engine.fixed(rows, n_samples, handles),
    }
    if early:
        ways["early"] = lambda: engine.early(rows, n_samples)
    ms = in_turn(ways, len(rows))
    return Point(at, ms["lora"], ms["fixed"], ms.get("early"))


def in_turn(ways: dict[str, Callable[[], object]], n_questions: int) -> dict[str, float]:
    """Milliseconds a question of each way, the ways in turn a few times."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * median(found) / n_questions for name, found in seconds.items()}


def _prompts(engine: Engine) -> list[tuple[int, list[PackedRow]]]:
    """Four questions behind ever more text."""
    found = []
    for copies in (0, 4, 12, 28):
        rows = [engine.row(FILLER * copies + f"Question {k}: what do plants need?", CHOICES) for k in range(4)]
        found.append((rows[0].prompt_tokens, rows))
    return found


def _choices(engine: Engine) -> list[tuple[int, list[PackedRow]]]:
    """Eight questions with ever more choices."""
    return [
        (n, [engine.row(f"Question {k}: what do plants need?", _varied(n)) for k in range(8)]) for n in (2, 4, 8, 16)
    ]


def _varied(count: int) -> list[str]:
    return [f"{CHOICES[k % len(CHOICES)]} {k}" for k in range(count)]


def _copies(handle: AdapterHandle, count: int) -> list[AdapterHandle]:
    """So many adapters that differ in name alone, which nothing below looks through."""
    return [replace(handle, digest=f"{handle.digest}-{k}") for k in range(count)]
