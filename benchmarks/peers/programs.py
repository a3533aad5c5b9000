"""Programs of other projects, each in an environment of its own, and what they answer about the rows of a set."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.peers.figures import Scored
from benchmarks.peers.sets import TaskSet
from benchmarks.server_process import TRIAGE
from blora.decision.temperature import fit_recalibration
from blora.training.rows.examples import Example

__all__ = ["MOST_OPTIONS", "Asked", "question_of", "scored"]

# The programs that list options by letters, or read all of them with every row, are asked about no more.
MOST_OPTIONS = 26
# The parts of a set that a program is asked about, in this order.
PARTS = ("validation", "proof", "test", "foreign")
# Against log 0, as for the regressions.
LEAST = torch.finfo(torch.float32).tiny
# The questions that are asked about a text, by set.
FILES = {"demo": "queue.json", "urgent": "urgent.json", "mood": "mood.json"}
# What other projects call the types of questions.
KINDS = {"choice": "choice", "predicate": "noul", "score": "score"}

# A question about a text: its kind, its text, its options, and the text that it is about.
Asked = dict[str, Any]


def question_of(task: TaskSet, row: Example) -> Asked:
    """Return a row as a question: one about a text, or one that is all there is."""
    options = list(row.choices)
    if task.name in FILES:
        question = json.loads((TRIAGE / "questions" / FILES[task.name]).read_text())
        kind, text = KINDS[question["type"]], question["instructions"]
        return {"kind": kind, "text": text, "options": options, "state": row.prompt}
    kind = "noul" if options == ["no", "yes"] else "choice"
    return {"kind": kind, "text": row.prompt, "options": options, "state": ""}


def scored(
    method: str, task: TaskSet, command: Sequence[str | Path], line_of: Callable[[Example], Any], *, seconds: float
) -> Scored:
    """Return what a program says of the rows of a set, but the training rows, recalibrated on the validation rows.

    Args:
        method: name of the program in results.
        task: the set.
        command: the program. Every line of its standard output is the probabilities of a row's choices, in JSON.
        line_of: what the program reads about a row, in JSON, from a line of its standard input.
        seconds: its training time.

    Raises:
        RuntimeError: if the program does not answer every row.
        CalledProcessError: if the program fails.
    """
    found = _answers({name: rows for name in PARTS if (rows := task.parts().get(name))}, command, line_of)
    labels = torch.tensor([row.label for row in task.validation])
    ones = torch.ones(len(labels))  # none of these probabilities depends on the length of an option
    recalibration = fit_recalibration(found["validation"], labels, ones, powers=(0.0, 0.0))
    return Scored(method, found["test"], found.get("foreign"), recalibration, seconds, proof=found.get("proof"))


def _answers(
    parts: Mapping[str, Sequence[Example]], command: Sequence[str | Path], line_of: Callable[[Example], Any]
) -> dict[str, Tensor]:
    """Return a program's log-probabilities (1, N, C) of the rows of each part."""
    lines = [json.dumps(line_of(row)) + "\n" for rows in parts.values() for row in rows]
    done = subprocess.run(command, input="".join(lines), stdout=subprocess.PIPE, text=True, check=True)
    probs = [torch.tensor(json.loads(line)).clamp_min(LEAST) for line in done.stdout.splitlines()]
    if len(probs) != len(lines):
        raise RuntimeError(f"got {len(probs)} answers of {command[0]}, expected {len(lines)}")
    every = pad_sequence(probs, batch_first=True).log()[None]  # -inf for options that a row does not have
    return dict(zip(parts, every.split([len(rows) for rows in parts.values()], 1), strict=True))
