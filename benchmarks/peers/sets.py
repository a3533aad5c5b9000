"""The sets of rows that the methods are compared on: training, validation, test and foreign rows."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.result_files import read_lines
from benchmarks.server_process import ROOT, TICKET, TRIAGE
from blora.config import PromptConfig
from blora.training.config import NEW_PROMPT
from blora.training.rows.examples import DEFAULT_TEMPLATES, Example

__all__ = ["DATA", "QUESTIONS", "SETS", "TaskSet", "load_set"]

DATA = ROOT.parent / "shared" / "data"
SETS = ("demo", "banking77", "clinc150", "arc_easy", "boolq", "urgent", "mood")
# The sets of the demo's two other questions, with the labels of each, levels from the lowest to the highest.
QUESTIONS = {"urgent": ("false", "true"), "mood": ("calm", "annoyed", "angry")}
# One in seven training rows validates where a set has no validation rows.
EVERY = 7


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Rows of one set, and the settings of a head for it.

    Attributes:
        name: one of `SETS`.
        prompt: template, fixed choices if there are any, and readout.
        train: rows to train on.
        validation: rows that choose settings and recalibration.
        test: N rows that are scored.
        foreign: rows that do not belong to the set, with a label that means nothing; may be empty.
        foreign_source: file name of the foreign rows, None if there are none.
        clear: (N,) mask of the test rows with one right answer, None if the set does not say.
        ordered: whether the labels are levels, in order.
        proof: rows that prove thresholds, which are then applied to the test rows; without any, halves of the test rows
            do both.
    """

    name: str
    prompt: PromptConfig
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    foreign: tuple[Example, ...] = ()
    foreign_source: str | None = None
    clear: Tensor | None = None
    ordered: bool = False
    proof: tuple[Example, ...] = ()

    def parts(self) -> dict[str, tuple[Example, ...]]:
        """Return the rows of every part that has some, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return named | {name: rows for name, rows in (("foreign", self.foreign), ("proof", self.proof)) if rows}


def load_set(name: str) -> TaskSet:
    """Return a set by its name, one of `SETS`; all but the demo's need the shared data."""
    if name == "arc_easy":
        return _questions(name, "openbookqa_test.jsonl")
    if name == "demo":
        parts = [read_lines(TRIAGE / f"{part}.jsonl") for part in ("train", "validation", "test")]
        clear = torch.tensor([not row["ambiguous"] for row in parts[2]])
        task = _texts(name, TICKET, parts, TRIAGE / "out_of_scope.jsonl")
        proof = _examples(read_lines(TRIAGE / "comparison.jsonl"), task.prompt.choices or ())
        return replace(task, clear=clear, proof=proof)
    if name == "boolq":
        train, test = (_answered(DATA / f"{name}_{part}.jsonl") for part in ("train", "test"))
        return _texts(name, DEFAULT_TEMPLATES["question"], [*_divided(train), test], None)
    if name in QUESTIONS:
        parts = [_about(name, part) for part in ("train", "validation", "test", "comparison")]
        task = _texts(name, TICKET, parts[:3], None, QUESTIONS[name])
        return replace(task, proof=_examples(parts[3], QUESTIONS[name]), ordered=name == "mood")
    if name == "clinc150":
        parts = [read_lines(DATA / f"clinc150_{part}.jsonl") for part in ("train", "val", "test")]
        return _texts(name, "{prompt}", parts, DATA / "clinc150_out_of_scope_test.jsonl")
    parts = [*_divided(read_lines(DATA / f"{name}_train.jsonl")), read_lines(DATA / f"{name}_test.jsonl")]
    return _texts(name, "{prompt}", parts, None)


def _texts(
    name: str,
    template: str,
    parts: list[list[dict[str, Any]]],
    foreign: Path | None,
    labels: tuple[str, ...] = (),
) -> TaskSet:
    """Return a set of texts with one fixed set of labels, by default those of the training rows."""
    labels = labels or tuple(sorted({row["label"] for row in parts[0]}))
    prompt = replace(NEW_PROMPT, template=template, choices=labels, readout="linear")
    train, validation, test = (_examples(rows, labels) for rows in parts)
    if foreign is None:
        return TaskSet(name, prompt, train, validation, test)
    return TaskSet(name, prompt, train, validation, test, _examples(read_lines(foreign), labels), foreign.name)


def _answered(file: Path) -> list[dict[str, Any]]:
    """Return questions that all have the same choices as texts with a label."""
    return [row | {"prompt": row["question"], "label": row["choices"][row["label"]]} for row in read_lines(file)]


def _about(question: str, part: str) -> list[dict[str, Any]]:
    """Return tickets with the label of one question."""
    rows = read_lines(TRIAGE / "moods" / f"{part}.jsonl")
    return [row | {"label": str(row[question]).lower()} for row in rows]


def _examples(rows: list[dict[str, Any]], labels: tuple[str, ...]) -> tuple[Example, ...]:
    """Return texts with fixed labels; a row without a label gets the first one."""
    return tuple(
        Example(row["id"], "prompt", row["prompt"], None, labels, labels.index(row.get("label", labels[0])))
        for row in rows
    )


def _questions(name: str, foreign: str) -> TaskSet:
    """Return a set of questions that bring their own choices."""

    def examples(rows: list[dict[str, Any]]) -> tuple[Example, ...]:
        return tuple(
            Example(row["id"], "question", row["question"], None, tuple(row["choices"]), row["label"]) for row in rows
        )

    prompt = replace(NEW_PROMPT, template=DEFAULT_TEMPLATES["question"], readout="pointer")
    parts = [*_divided(read_lines(DATA / f"{name}_train.jsonl")), read_lines(DATA / f"{name}_test.jsonl")]
    train, validation, test = map(examples, parts)
    return TaskSet(name, prompt, train, validation, test, examples(read_lines(DATA / foreign)), foreign)


def _divided(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return training rows without every seventh, and every seventh to validate with."""
    return [row for k, row in enumerate(rows) if k % EVERY], rows[::EVERY]
