"""The sets whose questions an adapter is trained on, each with rows from elsewhere."""

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from benchmarks.peers.sets import DATA, TaskSet, load_set
from blora.training.rows.examples import Example, read_examples

__all__ = ["SETS", "Elsewhere", "load"]

SETS = ("demo", "clinc150", "arc_easy")
NAMES = {"demo": "out of scope", "clinc150": "out of scope", "arc_easy": "OpenBookQA"}
# Questions that bring their own choices are long: rows of the test set, and of each foreign set, that are read.
MOST_TEST, MOST_FOREIGN = 600, 400
# Further sets whose questions bring their own choices.
QUESTIONS = {"BoolQ": "boolq_test.jsonl", "ARC-Challenge": "arc_challenge_train.jsonl"}


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A set, and the foreign sets that its trained head is shown.

    Attributes:
        task: the set; its foreign rows are those of all foreign sets, one after another.
        sizes: number of rows of each foreign set, by name.
        labelled: whether the foreign rows have a right answer among their choices.
    """

    task: TaskSet
    sizes: dict[str, int]
    labelled: bool

    @property
    def places(self) -> dict[str, slice]:
        """The foreign rows of each foreign set, by name."""
        ends = pairwise(accumulate(self.sizes.values(), initial=0))
        return {name: slice(*place) for name, place in zip(self.sizes, ends, strict=True)}


def load(name: str) -> Elsewhere:
    """Return a set by its name, one of `SETS`; all but the demo need the shared data."""
    task = load_set(name)
    foreign: dict[str, tuple[Example, ...]] = {NAMES[name]: task.foreign}
    labelled = task.prompt.choices is None
    if labelled:
        foreign |= {
            also: read_examples(str(DATA / file), limit=MOST_FOREIGN).examples for also, file in QUESTIONS.items()
        }
        foreign[NAMES[name]] = task.foreign[:MOST_FOREIGN]
        task = replace(task, test=task.test[:MOST_TEST])
    every = tuple(row for rows in foreign.values() for row in rows)
    return Elsewhere(replace(task, foreign=every), {name: len(rows) for name, rows in foreign.items()}, labelled)
