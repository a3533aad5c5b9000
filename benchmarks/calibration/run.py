"""The runs of a comparison, one result file each; a run whose file exists is not done again."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.calibration.bench import Bench
from benchmarks.calibration.methods import METHODS, Method, obtain
from benchmarks.calibration.store import Trained, cached
from benchmarks.calibration.treatments import Predictions, Treatments, evaluations
from blora.decision.metrics import metrics
from blora.posterior.draws import Draws
from blora.training.evaluate import predict_all
from blora.training.provenance import machine, revision
from blora.training.rows.packed import LabelledRow, labels_of, lengths_of

__all__ = ["run"]


def run(
    bench: Bench, methods: Sequence[str], seeds: Sequence[int], output: Path, command: str
) -> Iterator[tuple[Path, bool]]:
    """Run every method for every seed.

    Args:
        bench: the common ground.
        methods: names in METHODS.
        seeds: of training; methods that have none run once.
        output: folder of the result files.
        command: how the run was started, for the record.

    Yields:
        Each result file, and whether it was there before.
    """
    for seed in seeds:
        for name in methods:
            method = METHODS[name]
            if not method.seeded and seed != seeds[0]:
                continue
            suffix = f"-seed{seed}" if method.seeded else ""
            file = output / f"{name}{suffix}.json"
            if file.is_file():
                yield file, True
                continue
            result = _result(bench, method, seed) | {"command": command}
            output.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1) + "\n")
            partial.replace(file)
            yield file, False


def _result(bench: Bench, method: Method, seed: int) -> dict[str, Any]:
    trained = obtain(bench, method.name, seed)
    draws = trained.draws
    validation, _ = _predictions(bench, method, seed, draws, "validation", bench.validation)
    treatments = Treatments.fit(validation)
    on_validation = metrics(validation.under(treatments.recalibration).mean(0), validation.labels)
    tests: list[dict[str, Any]] = []
    in_distribution: Predictions | None = None
    for name, test in bench.tests.items():
        found, seconds = _predictions(bench, method, seed, draws, name, test.rows)
        about = {"dataset": name, "digest": test.digest, "shift": test.source.shift, "seconds": seconds}
        known = evaluations(found, treatments, in_distribution=in_distribution if test.source.shift else None)
        tests += [about | each for each in known]
        if not test.source.shift and in_distribution is None:
            in_distribution = found
    return {
        "method": method.kind,
        "label": method.label,
        "single_model": method.single_model,
        "trained_on": bench.trained_on,
        "seed": seed if method.seeded else None,
        "n_samples": draws.n_samples if draws is not None else 1,
        "temperature": treatments.temperature,
        "recalibration": treatments.recalibration._asdict(),
        "training": _training(bench, trained),
        "validation": {"n_examples": len(validation.labels), **on_validation.to_dict()},
        "evaluations": tests,
        "base_model": bench.base.ref.id,
        "dtype": bench.base.dtype_name,
        "normalization": bench.validation[0].row.normalization,
        "machine": machine(bench.base.device),
        "revision": revision(),
    }


def _training(bench: Bench, trained: Trained) -> dict[str, Any] | None:
    if trained.draws is None:
        return None
    return {
        "seconds": trained.seconds,
        "n_examples": len(bench.train),
        "epochs": bench.epochs,
        "n_parameters": trained.n_parameters,
        **trained.notes,
    }


def _predictions(
    bench: Bench, method: Method, seed: int, draws: Draws | None, name: str, rows: Sequence[LabelledRow]
) -> tuple[Predictions, float]:
    """Return the predictions of the draws for the rows, and their seconds, both kept on disk."""

    def compute() -> dict[str, Tensor]:
        began = time.perf_counter()
        log_probs = predict_all(bench.base.model, rows, draws)
        return {
            "log_probs": log_probs,
            "labels": labels_of(rows),
            "lengths": lengths_of(rows),
            "seconds": torch.tensor(time.perf_counter() - began),
        }

    found = cached(bench.work / f"{method.name}-seed{seed}" / f"{name}.safetensors", compute)
    return Predictions(found["log_probs"], labels_of(rows), lengths_of(rows)), found["seconds"].item()
