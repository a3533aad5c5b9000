"""What an answer with a posterior costs beside one without, and whether it is the same answer.

`python -m benchmarks.serving DATA` with the folder of arc_easy_train.jsonl and arc_easy_test.jsonl; `--quick` asks
fewer questions. The adapters are trained first where runs/serving lacks them. All contenders answer the same questions
in turn, in one process.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from benchmarks.heads import ratio
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from benchmarks.serving.accuracy import compare_answers
from benchmarks.serving.adapters import FORK, prepare
from benchmarks.serving.beginnings import measure_beginnings
from benchmarks.serving.contenders import BATCH_TOKENS, Engine, PlainLora, Published
from benchmarks.serving.cost import measure_speeds, work_of
from benchmarks.serving.growth import grow
from benchmarks.serving.load import load, profiled
from blora.base_model import load_base_model
from blora.inference.fork import branching_layer
from blora.inference.packing import PackedRow
from blora.posterior.inject import inject
from blora.training.provenance import revision
from blora.training.rows.examples import ExampleSet, read_examples

N_SAMPLES = 16
# Questions of a round; of the published way, which takes longest, fewer.
BLOCK, PUBLISHED_BLOCK = 48, 4

Way = Callable[[Sequence[PackedRow]], object]


def timed(ways: dict[str, Way], blocks: Sequence[Sequence[PackedRow]]) -> dict[str, list[float]]:
    """Seconds a question of each way in each block, the ways in turn and each block begun by another."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for k, block in enumerate(blocks):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            rows = block[:PUBLISHED_BLOCK] if name == "published" else block
            began = time.perf_counter()
            ways[name](rows)
            found[name].append((time.perf_counter() - began) / len(rows))
    return found


def measure(data: Path, *, quick: bool) -> dict[str, Any]:
    """Return the result object."""
    adapters = prepare(data)
    engine, lora = Engine(adapters), PlainLora(adapters.late)
    published = Published(engine.everywhere)
    examples = _shuffled(data)
    n_blocks, n_judged, n_asked = (3, 100, 100) if quick else (7, 400, 200)
    kept = examples.examples
    judged = engine.pack(replace(examples, examples=kept[:n_judged]))
    figures, margins = compare_answers(engine, judged, [example.label for example in kept[:n_judged]], N_SAMPLES)
    far = [judged[i] for i in margins[: 3 * BLOCK].argsort(descending=True)[:BLOCK].tolist()]
    ways: dict[str, Way] = {
        "lora": lora.packed,
        "fixed": lambda rows: engine.fixed(rows, N_SAMPLES),
        "early": lambda rows: engine.early(rows, N_SAMPLES),
        "everywhere": lambda rows: engine.fixed(rows, N_SAMPLES, (engine.everywhere,)),
        "ensemble": lora.ensemble,
        "per_choice": lora.per_choice,
        "published": lambda rows: published.answer(rows, N_SAMPLES),
    }
    blocks = list(islice(_blocks(judged), n_blocks))
    timed(ways, blocks[:1])  # warm
    seconds = timed(ways, blocks)
    ratios = {
        "cost_early_over_lora": ratio(seconds, "early", "lora"),
        "cost_fixed16_over_lora": ratio(seconds, "fixed", "lora"),
        "published_over_early": ratio(seconds, "published", "early"),
        "everywhere_over_lora": ratio(seconds, "everywhere", "lora"),
        "ensemble_over_lora": ratio(seconds, "ensemble", "lora"),
        "per_choice_over_lora": ratio(seconds, "per_choice", "lora"),
    }
    bodies = _bodies(examples, n_asked)
    tokens = sum(row.n_tokens for row in judged) / len(judged)
    return {
        **{name: found["median"] for name, found in ratios.items()},
        "decision_agreement_64": figures.pop("decision_agreement_64"),
        "ratios": ratios,
        "ms_a_question": {name: 1e3 * median(found) for name, found in seconds.items()},
        "tokens_per_s": {name: tokens / median(found) for name, found in seconds.items()},
        "answers": figures,
        "model_of_cost": _model_of_cost(engine, blocks[0]),
        "growth": {name: [p.to_dict() for p in points] for name, points in grow(engine, lora, blocks[0], far).items()},
        "peak_memory_mib": psutil.Process().memory_info().rss / 2**20,
        "beginnings": measure_beginnings(adapters, examples),
        "load": load(adapters.late, bodies, (1, 4, 16, 64)),
        "profile": profiled(adapters.late, bodies),
        "bayesian_layers": FORK,
        "n_blocks": n_blocks,
        "questions_in_a_block": BLOCK,
        "batch_tokens": BATCH_TOKENS,
        "dtype": str(engine.late.config.training["dtype"]),
        "base_model": engine.late.config.base_model.id,
        "dataset": examples.source,
        **about("python -m benchmarks.serving" + (" --quick" if quick else "")),
    }


def _blocks(rows: Sequence[PackedRow]) -> Any:
    """Blocks of questions, from the start again when they run out."""
    start = 0
    while True:
        yield [rows[(start + k) % len(rows)] for k in range(BLOCK)]
        start += BLOCK


def measure_part(part: str, data: Path) -> dict[str, Any]:
    """One part of the result object alone."""
    adapters, examples = prepare(data), _shuffled(data)
    if part == "load":
        bodies = _bodies(examples, 200)
        return {
            "load": load(adapters.late, bodies, (1, 4, 16, 64)),
            "profile": profiled(adapters.late, bodies),
            "load_revision": revision(),
        }
    if part == "beginnings":
        return {"beginnings": measure_beginnings(adapters, examples)}
    engine = Engine(adapters)
    block = engine.pack(replace(examples, examples=examples.examples[:BLOCK]))
    return {"model_of_cost": _model_of_cost(engine, block)}


def _bodies(examples: ExampleSet, n_asked: int) -> list[dict[str, Any]]:
    return [{"prompt": example.prompt, "choices": example.choices} for example in examples.examples[:n_asked]]


def _shuffled(data: Path) -> ExampleSet:
    """Return the test questions in a random order."""
    examples = read_examples(str(data / "arc_easy_test.jsonl"))
    order = torch.randperm(len(examples.examples), generator=torch.Generator().manual_seed(0)).tolist()
    return replace(examples, examples=tuple(examples.examples[i] for i in order))


def _model_of_cost(engine: Engine, block: Sequence[PackedRow]) -> dict[str, Any]:
    """Return the predicted and the measured cost for several numbers of draws."""
    base = load_base_model()
    inject(base.model, engine.late.config.modules)
    draws = engine.late.bank.draws
    fork = branching_layer(draws)
    assert fork is not None  # the adapter has a posterior
    speeds = measure_speeds(base, draws.first(N_SAMPLES), block, BATCH_TOKENS)
    points = []
    for n_samples in (4, 16, 64):
        work = work_of(base.model, block, fork, n_samples, BATCH_TOKENS)
        [measured] = timed({"ours": lambda rows, s=n_samples: engine.fixed(rows, s)}, [block] * 3).values()
        found = median(measured) * len(block)
        points.append(
            {
                "draws": n_samples,
                "gflop": work.total / 1e9,
                "share_trunk": work.trunk / work.total,
                "share_branches": work.branches / work.total,
                "share_head": work.head / work.total,
                "predicted_s": speeds.seconds(work),
                "measured_s": found,
                "measured_over_predicted": found / speeds.seconds(work),
                "measured_over_limit": found * speeds.trunk / work.total,
            }
        )
    return {
        "gflops": {name: speed / 1e9 for name, speed in asdict(speeds).items()},
        "points": points,
        "revision": revision(),
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=ROOT.parent / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="fewer questions: under ten minutes")
    parser.add_argument("--part", choices=("cost", "beginnings", "load"), help="measure this alone, into the same file")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/serving/result.json")
    arguments = parser.parse_args()
    if arguments.part is not None:
        result = json.loads(arguments.json.read_text()) | measure_part(arguments.part, arguments.data)
    else:
        result = measure(arguments.data, quick=arguments.quick)
    write(arguments.json, result)


if __name__ == "__main__":
    main()
