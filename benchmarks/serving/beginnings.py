"""What a common beginning of prompts costs, read with every question and remembered."""

from collections.abc import Sequence
from typing import Any

from benchmarks.serving.adapters import Adapters
from benchmarks.serving.contenders import Engine, PlainLora
from benchmarks.serving.growth import FILLER, in_turn
from blora.inference.packing import PackedRow
from blora.inference.prefix import common_tokens
from blora.training.rows.examples import ExampleSet

__all__ = ["measure_beginnings"]

N_SAMPLES = 16
N_QUESTIONS = 16


def measure_beginnings(adapters: Adapters, examples: ExampleSet) -> list[dict[str, Any]]:
    """Milliseconds a question behind ever longer instructions: plain LoRA, and ours that stops early, two ways."""
    lora = PlainLora(adapters.late)
    reads, remembers = Engine(adapters), Engine(adapters, prefix_cache_mib=1024)
    points = []
    for copies in (2, 5, 12, 28):
        rows = _behind(reads, FILLER * copies, examples)
        remembers.early(rows, N_SAMPLES)  # the beginning is noticed
        ms = in_turn(
            {
                "lora": lambda rows=rows: lora.packed(rows),
                "read": lambda rows=rows: reads.early(rows, N_SAMPLES),
                "remembered": lambda rows=rows: remembers.early(rows, N_SAMPLES),
            },
            len(rows),
        )
        points.append({"tokens": common_tokens([row.prompt for row in rows]), **{f"{k}_ms": ms[k] for k in ms}})
    return points


def _behind(engine: Engine, beginning: str, examples: ExampleSet) -> Sequence[PackedRow]:
    return [
        engine.row(f"{beginning}Question: {example.prompt}", example.choices)
        for example in examples.examples[:N_QUESTIONS]
    ]
