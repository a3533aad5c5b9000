"""What does any2jev 0.1 get with the same base model and rows: a LoRA in every layer below a pointer head?

`python -m benchmarks.peers.decision_model --any2jev PROGRAM --set arc_easy` trains it on the training rows of a set, by
its defaults, and asks it about the other rows. It reads all options with every row, so that a set may have at most 26.
It has an environment of its own: `pip install any2jev==0.1.0 'transformers<5'`. A set takes from minutes to hours; the
trained model stays in the work folder and is used again. Validation rows choose its temperature, and recalibrate it
once more, as every other method.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.decisions.servers import train_any2jev
from benchmarks.peers.figures import Scored
from benchmarks.peers.programs import MOST_OPTIONS, question_of, scored
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import SETS, TaskSet, load_set
from benchmarks.server_process import ROOT
from blora.training.rows.examples import Example

__all__ = ["any2jev", "request_of"]

RESULTS = ROOT / "benchmarks" / "results" / "decision_model"
PROGRAM = Path(__file__).with_name("any2jev_program.py")


def any2jev(task: TaskSet, program: Path, folder: Path) -> Scored:
    """Return what any2jev, trained on the training rows of a set, says of the others, recalibrated on validation rows.

    Its training time is processor time, on all cores together.

    Args:
        task: the set.
        program: the program any2jev 0.1, beside the Python of its environment.
        folder: where the base model, the rows and the trained model go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: [request_of(task, row) for row in task.parts()[name]] for name in ("train", "validation")}
    seconds = train_any2jev(program, folder, rows)
    command = [program.with_name("python"), PROGRAM, folder / "any2jev"]
    return scored("any2jev", task, command, partial(request_of, task), seconds=seconds)


def request_of(task: TaskSet, row: Example) -> dict[str, Any]:
    """Return a row as a request of one question with a label."""
    asked = question_of(task, row)
    question = {"type": asked["kind"], "instructions": asked["text"], "label": row.label}
    if asked["kind"] == "choice":
        question |= {"criteria": dict.fromkeys(asked["options"]), "label": asked["options"][row.label]}
    elif asked["kind"] == "score":
        question["criteria"] = asked["options"]
    return {"state": asked["state"], "questions": {"question": question}}


def main() -> None:
    """Train and ask any2jev on one set, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--any2jev", type=Path, required=True, help="the program any2jev of its own environment")
    parser.add_argument("--set", choices=SETS, required=True, help="name of the set")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "any2jev", help="folder of the trained models")
    arguments = parser.parse_args()
    base, (name,) = begin(RESULTS, arguments.set)
    task = load_set(name)
    if (n_options := max(len(row.choices) for row in task.test)) > MOST_OPTIONS:
        parser.error(f"--set {name} has {n_options} options, expected at most {MOST_OPTIONS}")
    result = measure(task, [any2jev(task, arguments.any2jev, arguments.work / name)])
    write(RESULTS, result, base, f"python -m benchmarks.peers.decision_model --any2jev PROGRAM --set {name}")


if __name__ == "__main__":
    main()
