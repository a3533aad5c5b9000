"""What does a head gain that reads a sentence encoder's states beside those of the language model?

`python -m benchmarks.peers.beside` measures sets with fixed labels as `benchmarks.peers` does, on the states of the
embedded model and of all-MiniLM-L6-v2 side by side. blora serves no such head; the cheapest way to have one is a
logistic regression on both models' states. For the cost, texts are read alone by each model in turn.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import pad

from benchmarks.peers.encoder import load_encoder
from benchmarks.peers.figures import Scored
from benchmarks.peers.heads import heads
from benchmarks.peers.reading import ReadSet, Rows, cost_ms, kept_in, read_set
from benchmarks.peers.regressions import Parts, on_states
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import QUESTIONS, TaskSet, load_set
from benchmarks.server_process import ROOT
from blora.training.rows.packed import labels_of

__all__ = ["SETS", "both", "methods"]

RESULTS = ROOT / "benchmarks" / "results" / "beside"
# Sets of short texts with fixed labels.
SETS = ("demo", "banking77", "clinc150", *QUESTIONS)


def both(read: ReadSet, encoder: ReadSet) -> ReadSet:
    """Return a set with the states of both models side by side.

    The encoder's states are filled up with zeros, which tell nothing, until they take as many columns as some depths of
    the language model. Its own states come first, and the lowest of them are those of the familiarity.

    Args:
        read: the set as the language model reads it.
        encoder: the same set, in the same order, as the encoder reads it.
    """
    width = read.config.n_states // len(read.config.depths)
    more = -(-encoder.config.n_states // width)
    missing = more * width - encoder.config.n_states

    def beside(own: Rows, other: Rows) -> Rows:
        states = torch.cat([own.features.states, pad(other.features.states, (0, missing))], 1)
        return own._replace(features=replace(own.features, states=states, prompt=states))

    last = read.config.depths[-1]
    depths = (*read.config.depths, *range(last + 1, last + 1 + more))
    config = replace(read.config, depths=depths, n_states=len(depths) * width)
    found = {name: beside(own, getattr(encoder, name)) for name, own in read._asdict().items() if isinstance(own, Rows)}
    return read._replace(config=config, seconds=read.seconds + encoder.seconds, **found)


def methods(task: TaskSet, read: ReadSet) -> Iterator[Scored]:
    """Yield what each method says of the rows of a set of `both`; the seeds of each method are adjacent."""
    labels = labels_of(read.train.rows), labels_of(read.validation.rows)
    states = {name: getattr(read, name).features.states.numpy() for name in task.parts()}
    regression = on_states(Parts(states, *labels))
    yield _named(replace(regression, seconds=read.seconds + regression.seconds))
    yield from map(_named, heads(read, with_others=False))


def _named(scored: Scored) -> Scored:
    return replace(scored, method=f"{scored.method}, both models")


def main() -> None:
    """Measure every set of `SETS`, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo's without data")
    parser.add_argument("--keep", type=Path, help="folder that keeps the states of each set")
    arguments = parser.parse_args()
    embedded, names = begin(RESULTS, arguments.set)
    encoder = load_encoder()
    for name in [name for name in names if name in SETS]:
        task, keep = load_set(name), arguments.keep
        read = kept_in(keep and keep / f"{name}.pt", partial(read_set, embedded, task))
        beside = kept_in(keep and keep / f"{name}-encoder.pt", partial(read_set, encoder, task))
        costs = cost_ms([(embedded, task, read.config), (encoder, task, beside.config)])
        result = measure(task, methods(task, both(read, beside))) | {"embedded_ms": costs[0], "both_ms": sum(costs)}
        write(RESULTS, result, embedded, f"python -m benchmarks.peers.beside --set {name}")


if __name__ == "__main__":
    main()
