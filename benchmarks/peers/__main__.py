"""What do a decision head and the cheapest methods get on the same rows?

`python -m benchmarks.peers` trains, on every set: a logistic regression on the words of the texts, one on the frozen
base model's states, one on these after contrast, and the head of `blora train`, whose posterior mean and draws are
listed separately; where labels are few, other posteriors over the same weights; where they are levels, a cumulative
link. Questions that bring their own choices have the base model's log-probabilities in place of words and contrast.
Validation rows come out of the training rows where a set has none of its own. Every method is listed as trained and
recalibrated on the validation rows. Draws have seeds; all else is deterministic. On the same rows,
`benchmarks.peers.lora` measures heads above a LoRA, `benchmarks.peers.training_free` AnyJev, and
`benchmarks.peers.decision_model` any2jev.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.peers.contrast import contrast
from benchmarks.peers.cumulative import cumulative_link
from benchmarks.peers.figures import Scored
from benchmarks.peers.heads import heads
from benchmarks.peers.reading import ReadSet, kept_in, read_set
from benchmarks.peers.regressions import Parts, on_states, on_words
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import SETS, TaskSet, load_set
from benchmarks.server_process import ROOT
from blora.training.rows.packed import labels_of

RESULTS = ROOT / "benchmarks" / "results" / "peers"


def methods(task: TaskSet, read: ReadSet) -> Iterator[Scored]:
    """Yield what each method says of the test and the foreign rows of a set; the seeds of each method are adjacent."""
    if task.prompt.readout == "linear":
        yield from regressions(task, read)
    if task.ordered:
        yield from cumulative_link(read)
    yield from heads(read)


def regressions(task: TaskSet, read: ReadSet) -> Iterator[Scored]:
    """Yield the regressions on words, on states, and on states after contrast."""
    labels = labels_of(read.train.rows), labels_of(read.validation.rows)
    texts = {name: [example.prompt or "" for example in part] for name, part in task.parts().items()}
    yield on_words(Parts(texts, *labels))
    states = {name: getattr(read, name).features.states.numpy() for name in texts}
    for method in (on_states, contrast):
        found = method(Parts(states, *labels))
        yield replace(found, seconds=read.seconds + found.seconds)


def main() -> None:
    """Measure every set, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo's without data")
    parser.add_argument("--keep", type=Path, help="folder that keeps the states of each set")
    arguments = parser.parse_args()
    base, names = begin(RESULTS, arguments.set)
    for name in names:
        task, kept = load_set(name), arguments.keep / f"{name}.pt" if arguments.keep is not None else None
        read = kept_in(kept, partial(read_set, base, task))
        result = measure(task, methods(task, read))
        write(RESULTS, result, base, f"python -m benchmarks.peers --set {name}")


if __name__ == "__main__":
    main()
