"""How deep must a head read, and what does a question cost at less depth?

`python -m benchmarks.peers.depths` fits heads on the states at fewer depths than the default's, under templates that
hold the text once and twice (see `benchmarks.peers.twice`), on the sets of short texts and on the demo's other
questions. A pass ends at the deepest states, so that a head which does not read the last layers does not compute them.
For the cost, texts are read alone, by every way in turn.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.markdown import Columns, on_machines, record_table
from benchmarks.peers.figures import Scored
from benchmarks.peers.heads import drawn
from benchmarks.peers.reading import EMPTY_LORA, SAMPLING, SEEDS, ReadSet, Rows, cost_ms, kept_in, read_set
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import QUESTIONS, load_set
from benchmarks.peers.table import figure
from benchmarks.peers.twice import SETS as SHORT
from benchmarks.peers.twice import twice
from benchmarks.server_process import ROOT
from blora.training.head.train import fit_parts

__all__ = ["at_depths", "table", "ways"]

RESULTS = ROOT / "benchmarks" / "results" / "depths"
SETS = (*SHORT, *QUESTIONS)


def ways(config_depths: Sequence[int]) -> list[tuple[int, ...]]:
    """Return what a head may read: all depths, then all but the deepest, down to two.

    >>> ways((10, 15, 20))
    [(10, 15, 20), (10, 15)]
    """
    return [tuple(config_depths[:n]) for n in range(len(config_depths), 1, -1)]


def at_depths(read: ReadSet, depths: Sequence[int]) -> ReadSet:
    """Return a set as a linear head at some of the depths reads it."""
    width = read.config.n_states // len(read.config.depths)
    columns = torch.cat([torch.arange(width) + width * read.config.depths.index(depth) for depth in depths])

    def less(rows: Rows) -> Rows:
        states = rows.features.states[:, columns]
        return rows._replace(features=replace(rows.features, states=states, prompt=states))

    foreign, proof = (less(rows) if rows is not None else None for rows in (read.foreign, read.proof))
    train, validation, test = map(less, (read.train, read.validation, read.test))
    config = replace(read.config, depths=tuple(depths), n_states=len(columns))
    return ReadSet(config, train, validation, test, foreign, proof, read.seconds)


def methods(read: ReadSet, n_texts: int) -> Iterator[Scored]:
    """Yield the draws of a head at the depths of every way, for each of the seeds.

    Args:
        read: a set, with a linear head.
        n_texts: how often its template holds the text.
    """
    for depths in ways(read.config.depths):
        part = at_depths(read, depths)
        rows = (part.train.features, part.train.rows, part.validation.features, part.validation.rows)
        trained = fit_parts(part.config, *rows, SAMPLING, EMPTY_LORA, alone=False)
        for seed in SEEDS:
            yield replace(drawn("", part, trained, read.seconds, seed), method=_name(n_texts, depths))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of what each way reaches and costs, a set after the other."""
    columns: Columns = {
        "set": "{set}",
        "text": lambda row: "twice" if row["n_texts"] == 2 else "once",
        "depths": lambda row: ", ".join(map(str, row["depths"])),
        "time of an answer": "{cost:.2f}",
        "accuracy": figure("accuracy"),
        **{name: figure(name.lower()) for name in ("NLL", "ECE", "AURC")},
        "foreign AUROC": lambda row: (
            "–" if row.get("foreign_familiarity") is None else f"{row['foreign_familiarity']:.3f}"
        ),
    }
    rows = [row | {"set": result["set"]} for result in results for row in result["rows"]]
    first, revisions = results[0], ", ".join(sorted({result["revision"] for result in results}))
    return (
        f"{record_table(rows, columns, n_words=3)}\n\n"
        "The time of an answer is that of a text alone over its time in the first row of the set, the default; ± is "
        "the standard deviation over three seeds of the draws. Foreign AUROC: of the familiarity's distance, for "
        f"telling foreign rows from test rows. {first['base_model']}, {first['dtype']}; "
        f"{on_machines(results)}, revision {revisions}; `python -m benchmarks.peers.depths`."
    )


def _name(n_texts: int, depths: Sequence[int]) -> str:
    return f"{n_texts}: {', '.join(map(str, depths))}"


def main() -> None:
    """Measure every set of `SETS`, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo without data")
    parser.add_argument("--keep", type=Path, help="folder that keeps the states of each set")
    arguments = parser.parse_args()
    base, names = begin(RESULTS, arguments.set)
    for name in [name for name in names if name in SETS]:
        once, keep = load_set(name), arguments.keep
        tasks = {1: once, 2: twice(once)}
        files = {n: keep and keep / f"{name}{'-twice' * (n - 1)}.pt" for n in tasks}
        read = {n: kept_in(files[n], partial(read_set, base, task)) for n, task in tasks.items()}
        result = measure(once, chain.from_iterable(methods(read[n], n) for n in tasks))
        tried = [(n, depths) for n in tasks for depths in ways(read[n].config.depths)]
        costs = cost_ms([(base, tasks[n], at_depths(read[n], depths).config) for n, depths in tried])
        about = {
            _name(n, depths): {"n_texts": n, "depths": depths, "cost": cost / costs[0], "cost_ms": cost}
            for (n, depths), cost in zip(tried, costs, strict=True)
        }
        recalibrated = [row for row in result["rows"] if row["treatment"] == "recalibrated"]
        result["rows"] = [row | about[row["method"]] for row in recalibrated]
        write(RESULTS, result, base, f"python -m benchmarks.peers.depths --set {name}")


if __name__ == "__main__":
    main()
