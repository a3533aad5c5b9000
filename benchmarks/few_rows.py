"""What do training rows out of fold add to the recalibration of a head from a few hundred rows?

`python -m benchmarks.few_rows` trains heads on small parts of the training rows, nine tenths to train and a tenth to
validate as `blora train` divides them, and recalibrates each in two ways: on the validation rows alone, and together
with the training rows out of fold. Both ways have the same weights and draws. The demo's rows are those that prove its
thresholds, the other sets' their test rows.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.peers.figures import DTYPE
from benchmarks.peers.reading import EMPTY_LORA, SAMPLING, SEEDS, ReadSet, Rows, kept_in, read_set
from benchmarks.peers.sets import DATA, TaskSet, load_set
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.base_model import load_base_model
from blora.decision.metrics import metrics
from blora.decision.temperature import temper
from blora.posterior.noise import generator_of
from blora.training.config import N_SAMPLES_HEAD
from blora.training.head.train import fit_parts
from blora.training.rows.packed import labels_of

__all__ = ["RESULT"]

RESULT = ROOT / "benchmarks" / "results" / "few_rows" / "result.json"
SETS = ("demo", "mood", "arc_easy", "boolq")
N_ROWS = (150, 300, 600, 900)
N_DIVISIONS = 5
# Most rows of a set that are read, to train and to test.
MOST_ROWS = 1000


def small(name: str) -> TaskSet:
    """Return a set with few rows, of which the last part is scored."""
    task = load_set(name)
    scored, none = (task.proof or task.test)[:MOST_ROWS], ()
    return replace(task, train=task.train[:MOST_ROWS], validation=scored[:1], test=scored, foreign=none, proof=none)


def measure(read: ReadSet, n_rows: int, seed: int) -> dict[str, dict[str, float]]:
    """Return NLL and ECE of both recalibrations of a head from some of the training rows.

    Args:
        read: a set.
        n_rows: number of rows to train and to validate on, together.
        seed: seed of the choice of rows.
    """
    order = torch.randperm(len(read.train.rows), generator=generator_of(seed)).tolist()[:n_rows]
    parts = (order[: n_rows * 9 // 10], order[n_rows * 9 // 10 :])
    train, validation = (Rows([read.train.rows[i] for i in part], read.train.features.at(part)) for part in parts)
    trained = fit_parts(
        read.config, train.features, train.rows, validation.features, validation.rows, SAMPLING, EMPTY_LORA, alone=False
    )
    draws = trained.posterior.sample(N_SAMPLES_HEAD, generator_of(SEEDS[0]))
    log_probs, labels = read.test.under(draws), labels_of(read.test.rows)
    found = {}
    for name, trial in (("alone", trained.trial), ("out_of_fold", trained.served)):
        judged = metrics(temper(log_probs, trial.temperature, trial.lapse).mean(0), labels)
        found[name] = {"nll": judged.nll, "ece": judged.ece}
    return found


def summary(divisions: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the means over divisions of the rows, and mean and standard deviation of what the NLL gains."""
    gains = [one["alone"]["nll"] - one["out_of_fold"]["nll"] for one in divisions]
    means = {way: {name: fmean(one[way][name] for one in divisions) for name in ("nll", "ece")} for way in divisions[0]}
    return means | {"gain": fmean(gains), "gain_std": stdev(gains)}


def main() -> None:
    """Measure every set, or only the demo's without the shared data, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder that keeps the states of each set for further runs")
    keep: Path | None = parser.parse_args().keep
    base = load_base_model("embedded", dtype=DTYPE)
    found = []
    for name in SETS if DATA.exists() else ("demo", "mood"):
        kept = keep / f"{name}-few.pt" if keep is not None else None
        read = kept_in(kept, partial(read_set, base, small(name)))
        for n_rows in (n for n in N_ROWS if n <= len(read.train.rows)):
            divisions = [measure(read, n_rows, seed) for seed in range(N_DIVISIONS)]
            n_validation = n_rows - n_rows * 9 // 10
            size = {"set": name, "n_rows": n_rows, "n_validation": n_validation, "n_test": len(read.test.rows)}
            found.append(size | summary(divisions))
    result = {
        "sizes": found,
        "n_divisions": N_DIVISIONS,
        "base_model": base.ref.id,
        "dtype": base.dtype_name,
        **about("python -m benchmarks.few_rows", base.device),
    }
    write(RESULT, result)


if __name__ == "__main__":
    main()
