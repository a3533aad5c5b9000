"""What does AnyJev 0.3 get with the same base model: letters' probabilities over all rotations of the options?

`python -m benchmarks.peers.training_free --python PYTHON` asks it about every set of at most 26 options, where letters
end. It needs seconds a question, one pass for each rotation, so that of every part it is asked at most 200 rows, drawn
at random. Its answers come from `anyjev_program`, run by a Python that has AnyJev: `pip install 'anyjev[hf]==0.3.0'`.
Nothing is trained, but validation rows recalibrate it, as every other method. They are asked first, because it learns
from the texts that it is asked what it takes for the bias towards an option.
"""

import argparse
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.peers.figures import Scored, figures
from benchmarks.peers.results import begin, write
from benchmarks.peers.sets import SETS, TaskSet, load_set
from benchmarks.server_process import ROOT, TRIAGE
from blora.base_model import BaseModel
from blora.decision.temperature import fit_recalibration
from blora.posterior.noise import generator_of
from blora.training.rows.examples import Example

__all__ = ["MOST_ROWS", "answers", "measure", "thinned"]

RESULTS = ROOT / "benchmarks" / "results" / "training_free"
PROGRAM = Path(__file__).with_name("anyjev_program.py")

MOST_OPTIONS = 26
MOST_ROWS = 200
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


def thinned(task: TaskSet) -> TaskSet:
    """Return a set with at most `MOST_ROWS` random rows of every part that AnyJev is asked."""
    kept, clear = {}, task.clear
    for name, rows in task.parts().items():
        picked = torch.randperm(len(rows), generator=generator_of(0))[:MOST_ROWS].sort().values
        kept[name] = tuple(rows[i] for i in picked.tolist())
        if name == "test" and clear is not None:
            clear = clear[picked]
    return replace(task, **kept, clear=clear)


def measure(task: TaskSet, base: BaseModel, python: Path) -> dict[str, Any]:
    """Return AnyJev's figures on a set, as it answers and recalibrated on the validation rows.

    Args:
        task: the set, with at most `MOST_OPTIONS` choices, and few rows: see `thinned`.
        base: the base model.
        python: a Python with AnyJev 0.3.
    """
    found = answers(task, base, python)
    labels = {name: torch.tensor([row.label for row in rows]) for name, rows in task.parts().items()}
    ones = torch.ones(len(task.validation))  # letters have one length
    recalibration = fit_recalibration(found["validation"], labels["validation"], ones, powers=(0.0, 0.0))
    scored = Scored("AnyJev", found["test"], found.get("foreign"), recalibration, 0.0, proof=found.get("proof"))
    rows = []
    for treatment in ("as trained", "recalibrated"):
        probs, foreign, proof = scored.probabilities(recalibrated=treatment == "recalibrated")
        proved = (proof, labels["proof"]) if proof is not None else None
        of_treatment = figures(probs, labels["test"], foreign, task.clear, proved)
        rows.append({"method": "AnyJev", "treatment": treatment, "seeds": None, "spread": None} | of_treatment)
    sizes = {f"n_{name}": len(part) for name, part in task.parts().items() if name in found}
    return {"set": task.name} | sizes | {"rows": rows}


def _asked(task: TaskSet, row: Example) -> dict[str, Any]:
    """Return a row as a question: one about a text, or one that is all there is."""
    options = list(row.choices)
    if task.name in FILES:
        question = json.loads((TRIAGE / "questions" / FILES[task.name]).read_text())
        kind, text = KINDS[question["type"]], question["instructions"]
        return {"kind": kind, "text": text, "options": options, "state": row.prompt}
    kind = "noul" if options == ["no", "yes"] else "choice"
    return {"kind": kind, "text": row.prompt, "options": options, "state": ""}


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
            result = measure(task, base, arguments.python)
            write(RESULTS, result, base, "python -m benchmarks.peers.training_free --python PYTHON")


if __name__ == "__main__":
    main()
