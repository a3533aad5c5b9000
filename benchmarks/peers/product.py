"""Is a head better than plain regressions on words and on states, each by itself, whose probabilities are multiplied?

`python -m benchmarks.peers.product` measures sets with fixed labels as `benchmarks.peers` does: the product of a
regression on words and one on the embedded model's states, and the same with a third one on the states of
all-MiniLM-L6-v2. The powers in the product are those with the lowest NLL on validation rows.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.peers.encoder import SETS, load_encoder
from benchmarks.peers.figures import Scored
from benchmarks.peers.reading import ReadSet, kept_in, read_set
from benchmarks.peers.regressions import Parts, multiplied
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import TaskSet, load_set
from benchmarks.server_process import ROOT
from blora.inference.companion import with_companion
from blora.training.rows.packed import labels_of

__all__ = ["methods"]

RESULTS = ROOT / "benchmarks" / "results" / "product"


def methods(task: TaskSet, read: ReadSet) -> Iterator[Scored]:
    """Yield what each product says of the rows of a set.

    Args:
        task: the set.
        read: the same set, as it is read with a companion.
    """
    labels = labels_of(read.train.rows), labels_of(read.validation.rows)
    words = Parts({name: [example.prompt or "" for example in part] for name, part in task.parts().items()}, *labels)
    read_by = slice(read.config.n_base_states), slice(read.config.n_base_states, None)
    states = [
        Parts({name: getattr(read, name).features.states[:, own].numpy() for name in task.parts()}, *labels)
        for own in read_by
    ]
    for name, factors in (("", states[:1]), (", both models", states)):
        found = multiplied(f"regressions on words and states, multiplied{name}", words, *factors)
        yield replace(found, seconds=read.seconds + found.seconds)


def main() -> None:
    """Measure every set of the encoder's, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo's without data")
    parser.add_argument("--keep", type=Path, help="folder that keeps the states of each set")
    arguments = parser.parse_args()
    embedded, names = begin(RESULTS, arguments.set)
    both = with_companion(embedded, load_encoder())
    for name in [name for name in names if name in SETS]:
        task, keep = load_set(name), arguments.keep
        read = kept_in(keep and keep / f"{name}-companion.pt", partial(read_set, both, task))
        write(RESULTS, measure(task, methods(task, read)), embedded, f"python -m benchmarks.peers.product --set {name}")


if __name__ == "__main__":
    main()
