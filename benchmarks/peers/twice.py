"""What do a head and a regression on states gain if the template holds the text twice?

`python -m benchmarks.peers.twice` measures the sets of short texts as `benchmarks.peers` does, under templates that
hold the text twice. On the second time, every token is read with the whole text before it, which a causal model does
not do on the first. For the cost, texts are read alone, each once and twice.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.peers.figures import Scored
from benchmarks.peers.heads import heads
from benchmarks.peers.reading import ReadSet, cost_ms, kept_in, read_set
from benchmarks.peers.regressions import Parts, on_states
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import TaskSet, load_set
from benchmarks.server_process import ROOT
from blora.training.rows.packed import labels_of

__all__ = ["SETS", "methods", "named_twice", "twice"]

RESULTS = ROOT / "benchmarks" / "results" / "read_twice"
# Sets of short texts with fixed labels.
SETS = ("demo", "banking77", "clinc150")


def twice(task: TaskSet) -> TaskSet:
    """Return a set whose template holds the text twice, on lines of their own."""
    template = task.prompt.template.replace("{prompt}", "{prompt}\n{prompt}")
    return replace(task, prompt=replace(task.prompt, template=template))


def methods(task: TaskSet, read: ReadSet) -> Iterator[Scored]:
    """Yield what each method says of the rows of a set of `twice`; the seeds of each method are adjacent."""
    labels = labels_of(read.train.rows), labels_of(read.validation.rows)
    states = {name: getattr(read, name).features.states.numpy() for name in task.parts()}
    regression = on_states(Parts(states, *labels))
    yield named_twice(replace(regression, seconds=read.seconds + regression.seconds))
    yield from map(named_twice, heads(read, with_others=False))


def named_twice(scored: Scored) -> Scored:
    """Return what a method says of a set of `twice` under a name that says so."""
    return replace(scored, method=f"{scored.method}, read twice")


def main() -> None:
    """Measure every set of short texts, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo without data")
    parser.add_argument("--keep", type=Path, help="folder that keeps the states of each set")
    arguments = parser.parse_args()
    base, names = begin(RESULTS, arguments.set)
    for name in [name for name in names if name in SETS]:
        once, keep = load_set(name), arguments.keep
        task = twice(once)
        read = kept_in(keep and keep / f"{name}-twice.pt", partial(read_set, base, task))
        milliseconds = cost_ms([(base, once, read.config), (base, task, read.config)])
        costs = dict(zip(("once_ms", "twice_ms"), milliseconds, strict=True))
        result = measure(task, methods(task, read)) | costs
        write(RESULTS, result, base, f"python -m benchmarks.peers.twice --set {name}")


if __name__ == "__main__":
    main()
