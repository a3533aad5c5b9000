"""What do mirrored draws of a head gain over as many independent ones, and over more?

`python -m benchmarks.peers.mirrored` fits heads on four sets with fixed labels as `blora train` does, and draws from
their posteriors in both ways, with several seeds. Every set of draws is recalibrated on the validation rows.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.markdown import Columns, on_machines, record_table
from benchmarks.peers.figures import averaged, figures
from benchmarks.peers.reading import EMPTY_LORA, SAMPLING, ReadSet, kept_in, read_set
from benchmarks.peers.results import begin, write
from benchmarks.peers.sets import load_set
from benchmarks.peers.table import figure
from benchmarks.server_process import ROOT
from blora.posterior.decision_head import DecisionHead, HeadDraws, HeadPosterior
from blora.posterior.noise import generator_of
from blora.training.head.train import fit_parts
from blora.training.rows.packed import labels_of
from blora.training.trials import trial_of

__all__ = ["measured", "table"]

RESULTS = ROOT / "benchmarks" / "results" / "mirrored"
SETS = ("demo", "banking77", "urgent", "mood")
COUNTS = (16, 64, 256)
N_SEEDS = 8


def measured(read: ReadSet) -> Iterator[dict[str, Any]]:
    """Yield the mean figures of independent and mirrored draws over the seeds, with their spread, for every count."""
    rows = (read.train.features, read.train.rows, read.validation.features, read.validation.rows)
    head = fit_parts(read.config, *rows, SAMPLING, EMPTY_LORA, alone=False).posterior.head
    for n_draws in COUNTS:
        for mirrored in (False, True):
            way = replace(head, config=replace(head.config, mirrored=mirrored))
            found = [_figures(read, _draws(way, n_draws, seed)) for seed in range(N_SEEDS)]
            mean, spread = averaged(found)
            yield {"n_draws": n_draws, "mirrored": mirrored} | mean | {"spread": spread}


def _draws(head: DecisionHead, n_draws: int, seed: int) -> HeadDraws:
    return HeadPosterior(head, EMPTY_LORA).sample(n_draws, generator_of(seed))


def _figures(read: ReadSet, draws: HeadDraws) -> dict[str, float | None]:
    """Return the figures of draws on the test rows, and their NLL on the validation rows, which recalibrate them."""
    trial = trial_of(0.0, read.validation.under(draws), read.validation.rows)
    test, foreign, _ = read.under("", draws, trial, 0.0).probabilities(recalibrated=True)
    return {"validation_nll": trial.metrics.nll} | figures(test, labels_of(read.test.rows), foreign, None)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of independent beside mirrored draws, a set after the other."""

    def column(name: str, *, mirrored: bool) -> Callable[[Any], str]:
        return lambda row: figure(name)(row["ways"][mirrored])

    columns: Columns = {"set": "{set}", "draws": "{n_draws}"}
    for title, name in (("validation NLL", "validation_nll"), ("NLL", "nll"), ("ECE", "ece")):
        columns |= {f"{title}, {way}": column(name, mirrored=way == "mirrored") for way in ("independent", "mirrored")}
    rows = [
        {"set": result["set"], "n_draws": n_draws, "ways": {row["mirrored"]: row for row in pair}}
        for result in results
        for n_draws, pair in groupby(result["rows"], lambda row: row["n_draws"])
    ]
    first, revisions = results[0], ", ".join(sorted({result["revision"] for result in results}))
    return (
        f"{record_table(rows, columns)}\n\n"
        f"± is the standard deviation over {first['n_seeds']} seeds of the draws. "
        f"{first['base_model']}, {first['dtype']}; {on_machines(results)}, revision {revisions}; "
        "`python -m benchmarks.peers.mirrored`."
    )


def main() -> None:
    """Measure every set of `SETS`, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo's without data")
    parser.add_argument("--keep", type=Path, help="folder that keeps the states of each set")
    arguments = parser.parse_args()
    base, names = begin(RESULTS, arguments.set)
    for name in [name for name in names if name in SETS]:
        read = kept_in(arguments.keep and arguments.keep / f"{name}.pt", partial(read_set, base, load_set(name)))
        result = {"set": name, "n_seeds": N_SEEDS, "rows": list(measured(read))}
        write(RESULTS, result, base, f"python -m benchmarks.peers.mirrored --set {name}")


if __name__ == "__main__":
    main()
