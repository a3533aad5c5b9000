"""What do training rows out of fold, and a last fit to all rows, add to a head from a few hundred rows?

`python -m benchmarks.few_rows` trains heads on small parts of the training rows, nine tenths to train and a tenth to
validate as `blora train` divides them, and recalibrates each in two ways: on the validation rows alone, and together
with the training rows out of fold. Both ways have the same weights and draws. The head is then fitted to all of the
rows with the second recalibration, as `blora train` does. Beside it stands the usual regression of few rows: on the
states of all of them, its penalty by five-fold cross-validation (scikit-learn's `LogisticRegressionCV`). The demo's
rows are those that prove its thresholds, the other sets' their test rows.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.markdown import Columns, on_machine, record_table
from benchmarks.peers.figures import DTYPE
from benchmarks.peers.reading import EMPTY_LORA, SAMPLING, SEEDS, ReadSet, Rows, kept_in, read_set
from benchmarks.peers.sets import DATA, TaskSet, load_set
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.base_model import load_base_model
from blora.decision.metrics import metrics
from blora.decision.temperature import temper
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.noise import generator_of
from blora.training.config import N_SAMPLES_HEAD
from blora.training.head.train import fit_parts
from blora.training.rows.packed import labels_of

__all__ = ["RESULT", "all_rows_table", "recalibration_table"]

RESULT = ROOT / "benchmarks" / "results" / "few_rows" / "result.json"
SETS = ("demo", "mood", "arc_easy", "boolq")
N_ROWS = (150, 300, 600, 900)
N_DIVISIONS = 5
# Candidates for C, the inverse of the regression's penalty.
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# Most rows of a set that are read, to train and to test.
MOST_ROWS = 1000


def small(name: str) -> TaskSet:
    """Return a set with few rows, of which the last part is scored."""
    task = load_set(name)
    scored, none = (task.proof or task.test)[:MOST_ROWS], ()
    return replace(task, train=task.train[:MOST_ROWS], validation=scored[:1], test=scored, foreign=none, proof=none)


def measure(read: ReadSet, n_rows: int, seed: int) -> dict[str, dict[str, float]]:
    """Return NLL and ECE of heads and of the regression from some of the training rows.

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
    rows = Rows([read.train.rows[i] for i in order], read.train.features.at(order))
    on_all = HeadPosterior(trained.again(rows.features, rows.rows).widen(trained.trial.scale), EMPTY_LORA)
    probs = {
        name: temper(
            read.test.under(posterior.sample(N_SAMPLES_HEAD, generator_of(SEEDS[0]))), trial.temperature, trial.lapse
        ).mean(0)
        for name, posterior, trial in (
            ("alone", trained.posterior, trained.trial),
            ("out_of_fold", trained.posterior, trained.served),
            ("on_all", on_all, trained.served),
        )
    }
    if rows.features.owner is None:
        probs["regression"] = cross_validated(rows, read.test)
    judged = {name: metrics(one, labels_of(read.test.rows)) for name, one in probs.items()}
    return {name: {"nll": one.nll, "ece": one.ece} for name, one in judged.items()}


def cross_validated(rows: Rows, test: Rows) -> Tensor:
    """Return the probabilities (N, C) of test rows by a cross-validated regression on the states of labelled rows."""
    regression = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=PENALTIES,
            cv=StratifiedKFold(5, shuffle=True, random_state=SEEDS[0]),
            scoring="neg_log_loss",
            l1_ratios=(0,),
            use_legacy_attributes=False,
            max_iter=1000,
        ),
    )
    regression.fit(rows.features.states.numpy(), labels_of(rows.rows).numpy())
    return torch.from_numpy(regression.predict_proba(test.features.states.numpy()))


def summary(divisions: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the means over divisions of the rows, and mean and standard deviation of what each step gains in NLL."""
    means = {way: {name: fmean(one[way][name] for one in divisions) for name in ("nll", "ece")} for way in divisions[0]}

    def gain(before: str, after: str) -> dict[str, float]:
        gains = [one[before]["nll"] - one[after]["nll"] for one in divisions]
        return {"mean": fmean(gains), "std": stdev(gains)}

    return means | {"gain": gain("alone", "out_of_fold"), "gain_on_all": gain("out_of_fold", "on_all")}


def recalibration_table(result: dict[str, Any]) -> str:
    """Return the table of heads that are recalibrated without and with training rows out of fold."""
    ways = {"validation rows alone": "alone", "with rows out of fold": "out_of_fold"}
    return _table(result, {"of these to validate": "{n_validation}", **_columns(ways)}, "fall of the NLL", "gain")


def all_rows_table(result: dict[str, Any]) -> str:
    """Return the table of heads that are fitted to all rows in the end, beside the regression."""
    ways = {"validation rows set aside": "out_of_fold", "on all rows": "on_all", "regression": "regression"}
    return _table(result, _columns(ways), "fall of the NLL", "gain_on_all")


def _columns(ways: dict[str, str]) -> Columns:
    return {
        f"{metric.upper()}, {way}": lambda row, metric=metric, key=key: f"{row[key][metric]:.3f}" if key in row else "–"
        for metric in ("nll", "ece")
        for way, key in ways.items()
    }


def _table(result: dict[str, Any], columns: Columns, gain: str, of: str) -> str:
    gained: Columns = {gain: lambda row: f"{row[of]['mean']:.3f} ± {row[of]['std']:.3f}"}
    return (
        f"{record_table(result['sizes'], {'set': '{set}', 'rows': '{n_rows}'} | columns | gained, n_words=2)}\n\n"
        f"Means over {result['n_divisions']} choices of the rows, ± the standard deviation; {result['base_model']}, "
        f"{result['dtype']}; {on_machine(result['machine'])}, revision {result['revision']}; `{result['command']}`."
    )


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
