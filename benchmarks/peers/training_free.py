"""What does AnyJev 0.3 get with the same base model: letters' probabilities over all rotations of the options?

`python -m benchmarks.peers.training_free --python PYTHON` asks it about every set of at most 26 options, where letters
end. It needs seconds a question, one pass for each rotation, so that of every part it is asked at most 200 rows, drawn
at random. Its answers come from `anyjev_program`, run by a Python that has AnyJev: `pip install 'anyjev[hf]==0.3.0'`.
Nothing is trained, but validation rows recalibrate it, as every other method. They are asked first, because it learns
from the texts that it is asked what it takes for the bias towards an option.
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers.figures import Scored
from benchmarks.peers.programs import MOST_OPTIONS, question_of, scored
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import SETS, TaskSet, load_set
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel
from blora.posterior.noise import generator_of

__all__ = ["MOST_ROWS", "anyjev", "thinned"]

RESULTS = ROOT / "benchmarks" / "results" / "training_free"
PROGRAM = Path(__file__).with_name("anyjev_program.py")

MOST_ROWS = 200


def anyjev(task: TaskSet, base: BaseModel, python: Path) -> Scored:
    """Return what AnyJev says of the rows of a set, but the training rows, recalibrated on the validation rows.

    Args:
        task: the set, with at most `MOST_OPTIONS` choices, and few rows: see `thinned`.
        base: the base model.
        python: a Python with AnyJev 0.3.
    """
    with tempfile.TemporaryDirectory() as folder:
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        return scored("AnyJev", task, [python, PROGRAM, folder], partial(question_of, task), seconds=0.0)


def thinned(task: TaskSet) -> TaskSet:
    """Return a set with at most `MOST_ROWS` random rows of every part that AnyJev is asked, and none to train on."""
    kept, clear = {}, task.clear
    for name, rows in task.parts().items():
        picked = torch.randperm(len(rows), generator=generator_of(0))[:MOST_ROWS].sort().values
        kept[name] = tuple(rows[i] for i in picked.tolist())
        if name == "test" and clear is not None:
            clear = clear[picked]
    return replace(task, **kept | {"train": ()}, clear=clear)


def main() -> None:
    """Ask AnyJev about every set, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="a Python with anyjev[hf] 0.3")
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo's without data")
    arguments = parser.parse_args()
    base, names = begin(RESULTS, arguments.set)
    for name in names:
        task = thinned(load_set(name))
        if max(len(row.choices) for row in task.test) <= MOST_OPTIONS:
            result = measure(task, [anyjev(task, base, arguments.python)])
            write(RESULTS, result, base, "python -m benchmarks.peers.training_free --python PYTHON")


if __name__ == "__main__":
    main()
