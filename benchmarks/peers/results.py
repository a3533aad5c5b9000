"""The base model and the sets of a run on peers, and the result and its file of each set."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks import result_files
from benchmarks.peers.figures import DELTA, DTYPE, N_DIVISIONS, Scored, averaged, figures
from benchmarks.peers.sets import DATA, QUESTIONS, SETS, TaskSet
from blora.base_model import BaseModel, load_base_model

__all__ = ["begin", "measure", "write"]


def begin(folder: Path, name: str | None) -> tuple[BaseModel, tuple[str, ...]]:
    """Make the folder of the results, and return the base model and the sets: one, or all that have their data."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (name,) if name is not None else SETS if DATA.exists() else ("demo", *QUESTIONS)
    return load_base_model("embedded", dtype=DTYPE), names


def measure(task: TaskSet, methods: Iterable[Scored]) -> dict[str, Any]:
    """Return every method's figures on a set, as trained and recalibrated.

    Args:
        task: the set.
        methods: what each method says of its rows; the seeds of each method are adjacent.
    """
    labels, of_proof = (torch.tensor([row.label for row in part]) for part in (task.test, task.proof))
    found = []
    for method, scored in groupby(methods, lambda one: one.method):
        runs = list(scored)
        for treatment in ("as trained", "recalibrated"):
            by_seed = []
            for run in runs:
                probs, foreign, proof = run.probabilities(recalibrated=treatment == "recalibrated")
                proved = (proof, of_proof) if proof is not None else None
                by_seed.append(figures(probs, labels, foreign, task.clear, proved, run.distances))
            mean, spread = averaged(by_seed) if len(runs) > 1 else (by_seed[0], None)
            about = {"method": method, "treatment": treatment, "n_draws": len(runs[0].test)}
            recalibration = runs[0].recalibration
            about |= {"temperature": recalibration.temperature, "lapse": recalibration.lapse}
            about |= {"seeds": [run.seed for run in runs] if spread is not None else None}
            found.append(about | mean | {"spread": spread, "training_s": fmean(run.seconds for run in runs)})
    return {
        "set": task.name,
        "n_train": len(task.train),
        "n_validation": len(task.validation),
        "n_test": len(task.test),
        "n_foreign": len(task.foreign),
        "n_proof": len(task.proof),
        "foreign": task.foreign_source,
        "delta": DELTA,
        "n_divisions": N_DIVISIONS,
        "rows": found,
    }


def write(folder: Path, result: dict[str, Any], base: BaseModel, command: str) -> None:
    """Write a set's result with the base model, the machine, the revision and the command that it is of."""
    result |= {"base_model": base.ref.id, "dtype": base.dtype_name, **result_files.about(command, base.device)}
    result_files.write(folder / f"{result['set']}.json", result)
