"""What does a head gain that reads a companion, a sentence encoder, beside the language model?

`python -m benchmarks.peers.companion` measures sets with fixed labels as `benchmarks.peers` does, on the states of the
embedded model with all-MiniLM-L6-v2 as its companion. The cheapest method that could do as well is there too: a
logistic regression on the states of both. For the cost, texts are read alone without and with the companion, in turn.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.peers.encoder import SETS, load_encoder
from benchmarks.peers.figures import Scored
from benchmarks.peers.heads import heads
from benchmarks.peers.reading import ReadSet, cost_ms, kept_in, read_set
from benchmarks.peers.regressions import Parts, on_states
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import TaskSet, load_set
from benchmarks.server_process import ROOT
from blora.inference.companion import with_companion
from blora.training.rows.packed import labels_of

__all__ = ["methods"]

RESULTS = ROOT / "benchmarks" / "results" / "companion"


def methods(task: TaskSet, read: ReadSet) -> Iterator[Scored]:
    """Yield what each method says of the rows of a set; the seeds of each method are adjacent."""
    labels = labels_of(read.train.rows), labels_of(read.validation.rows)
    states = {name: getattr(read, name).features.states.numpy() for name in task.parts()}
    regression = on_states(Parts(states, *labels))
    yield _named(replace(regression, seconds=read.seconds + regression.seconds))
    yield from map(_named, heads(read, with_others=False))


def _named(scored: Scored) -> Scored:
    return replace(scored, method=f"{scored.method}, both models")


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
        alone = replace(read.config, n_states=read.config.n_base_states, companion=None)
        milliseconds = cost_ms([(embedded, task, alone), (both, task, read.config)])
        costs = dict(zip(("embedded_ms", "both_ms"), milliseconds, strict=True))
        result = measure(task, methods(task, read)) | costs
        write(RESULTS, result, embedded, f"python -m benchmarks.peers.companion --set {name}")


if __name__ == "__main__":
    main()
