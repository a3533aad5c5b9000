"""Requests to POST /v1/systemone, which every compared server answers, and the probabilities in their answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from torch import Tensor

from benchmarks.result_files import read_lines
from benchmarks.server_process import TRIAGE

__all__ = [
    "LEVELS",
    "Row",
    "answers",
    "ask",
    "labelled_request_of",
    "labels",
    "probabilities",
    "questions_of",
    "read_rows",
    "request_of",
]

LEVELS = ("calm", "annoyed", "angry")


@dataclass(frozen=True, slots=True)
class Row:
    """A ticket and the right answers to the three questions about it."""

    prompt: str
    queue: str
    urgent: bool
    mood: str


def read_rows(name: str) -> list[Row]:
    """Return the tickets of a file in `moods/` of the demo."""
    tickets = read_lines(TRIAGE / "moods" / f"{name}.jsonl")
    return [Row(**{key: value for key, value in ticket.items() if key != "id"}) for ticket in tickets]


def questions_of(names: Sequence[str], *, turned: bool = False) -> dict[str, Any]:
    """Return questions in TypeSafe's shape; a name may end in a number, which makes it another question.

    Args:
        names: queue, urgent, mood, or these with a number.
        turned: whether the choices of the queue are in reverse order.
    """
    return {name: _question(name.rstrip("0123456789"), turned=turned) for name in names}


def request_of(row: Row) -> dict[str, Any]:
    """Return a ticket as a row that is a request, with a label in each question, for `blora train`."""
    labels = {"queue": row.queue, "urgent": row.urgent, "mood": row.mood}
    return {"input": row.prompt, "questions": [_own(name) | {"label": label} for name, label in labels.items()]}


def labelled_request_of(row: Row) -> dict[str, Any]:
    """Return a ticket as a request in TypeSafe's shape with labels, as any2jev trains on them."""
    labels = {"queue": row.queue, "urgent": row.urgent, "mood": LEVELS.index(row.mood)}
    questions = {name: question | {"label": labels[name]} for name, question in questions_of(list(labels)).items()}
    return {"state": row.prompt, "questions": questions}


def _own(name: str) -> dict[str, Any]:
    """Return a question of the demo in OpenAI's shape."""
    found: dict[str, Any] = json.loads((TRIAGE / "questions" / f"{name}.json").read_text())
    return found


def _question(name: str, *, turned: bool) -> dict[str, Any]:
    asked = _own(name)
    instructions = asked["instructions"]
    if asked["type"] == "predicate":
        return {"type": "noul", "instructions": instructions}
    if asked["type"] == "score":
        return {"type": "score", "instructions": instructions, "criteria": [one["label"] for one in asked["levels"]]}
    choices = asked["choices"][::-1] if turned else asked["choices"]
    return {
        "type": "choice",
        "instructions": instructions,
        "criteria": {one["value"]: one["description"] for one in choices},
    }


def ask(client: httpx.Client, text: str, questions: dict[str, Any]) -> dict[str, Any]:
    """Return a server's answers to questions about a text, by name."""
    response = client.post("/v1/systemone", json={"model": "triage", "state": text, "questions": questions})
    response.raise_for_status()
    found: dict[str, Any] = response.json()["answers"]
    return found


def answers(client: httpx.Client, rows: Sequence[Row], questions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a server's answers about each row, by name."""
    return [ask(client, row.prompt, questions) for row in rows]


def probabilities(found: Sequence[dict[str, Any]], name: str) -> Tensor:
    """Return the probabilities (N, C) of a question's answers; choices in alphabetical order, false before true."""
    if name == "urgent":
        yes = torch.tensor([one[name]["noul"] for one in found], dtype=torch.float64)
        return torch.stack([1 - yes, yes], -1)
    order = sorted(found[0][name]["probabilities"])
    return torch.tensor([[one[name]["probabilities"][key] for key in order] for one in found], dtype=torch.float64)


def labels(rows: Sequence[Row], name: str) -> Tensor:
    """Return the labels (N,) of a question, in the order of `probabilities`."""
    if name == "urgent":
        return torch.tensor([int(row.urgent) for row in rows])
    if name == "mood":
        return torch.tensor([LEVELS.index(row.mood) for row in rows])
    order = sorted({one["value"] for one in _own("queue")["choices"]})
    return torch.tensor([order.index(row.queue) for row in rows])
