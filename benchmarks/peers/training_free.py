"""AnyJev 0.3 with the same base model: letters' probabilities over all rotations of the options, without training.

Its answers come from `anyjev_program`, run by a Python that has AnyJev. Letters end at 26 options. Validation rows are
asked first, because it learns from the texts that it is asked what it takes for the bias towards an option.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.peers.figures import Scored
from benchmarks.peers.sets import TaskSet
from benchmarks.server_process import TRIAGE
from blora.base_model import BaseModel
from blora.decision.temperature import fit_recalibration
from blora.training.rows.examples import Example

__all__ = ["MOST_OPTIONS", "answers", "scored"]

PROGRAM = Path(__file__).with_name("anyjev_program.py")

MOST_OPTIONS = 26
# Against log 0, as for the regressions.
LEAST = torch.finfo(torch.float32).tiny
# The questions that are asked about a text, by set.
FILES = {"demo": "queue.json", "urgent": "urgent.json", "mood": "mood.json"}
# What AnyJev calls the types of questions.
KINDS = {"choice": "choice", "predicate": "noul", "score": "score"}
PARTS = ("validation", "proof", "test", "foreign")


def answers(task: TaskSet, base: BaseModel, python: Path) -> dict[str, Tensor]:
    """Return AnyJev's log-probabilities (1, N, C) of the rows of every part but the training rows, by its name.

    Args:
        task: the set, with at most `MOST_OPTIONS` choices.
        base: the base model.
        python: a Python with AnyJev 0.3.
    """
    parts = {name: rows for name in PARTS if (rows := task.parts().get(name))}
    asked = [json.dumps(_asked(task, row)) + "\n" for rows in parts.values() for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        command = [python, PROGRAM, folder]
        done = subprocess.run(command, input="".join(asked), stdout=subprocess.PIPE, text=True, check=True)
    probs = [torch.tensor(json.loads(line)).clamp_min(LEAST) for line in done.stdout.splitlines()]
    if len(probs) != len(asked):
        raise RuntimeError(f"got {len(probs)} answers of AnyJev, expected {len(asked)}")
    every = pad_sequence(probs, batch_first=True).log()[None]  # -inf for options that a row does not have
    return dict(zip(parts, every.split([len(rows) for rows in parts.values()], 1), strict=True))


def scored(found: Mapping[str, Tensor], task: TaskSet) -> Scored:
    """Return answers with their recalibration on the validation rows; nothing was trained."""
    labels = torch.tensor([row.label for row in task.validation])
    ones = torch.ones(len(labels))  # letters have one length
    recalibration = fit_recalibration(found["validation"], labels, ones, powers=(0.0, 0.0))
    return Scored("AnyJev", found["test"], found.get("foreign"), recalibration, 0.0, proof=found.get("proof"))


def _asked(task: TaskSet, row: Example) -> dict[str, Any]:
    """Return a row as a question: one about a text, or one that is all there is."""
    options = list(row.choices)
    if task.name in FILES:
        question = json.loads((TRIAGE / "questions" / FILES[task.name]).read_text())
        kind, text = KINDS[question["type"]], question["instructions"]
        return {"kind": kind, "text": text, "options": options, "state": row.prompt}
    kind = "noul" if options == ["no", "yes"] else "choice"
    return {"kind": kind, "text": row.prompt, "options": options, "state": ""}
