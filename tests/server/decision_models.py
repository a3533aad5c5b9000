"""Models for the fake engine that answer typed questions: a family of fixed ones, and an open one."""

from typing import Any

from blora.config import QuestionConfig
from blora.server.engines.handle import AdapterHandle
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, FakeEngine, handle

QUEUE = QuestionConfig(
    name="queue", instructions="Which team should answer?", descriptions={"billing": "money", "account": "log-in"}
)
URGENT = QuestionConfig(name="urgent", type="predicate", instructions="Does it have to be answered today?")
MOOD = QuestionConfig(
    name="mood", type="score", instructions="How angry is the customer?", descriptions={"angry": "swears"}
)
LEVELS = ("calm", "annoyed", "angry")
# Instructions of the questions of the model `triage`, by name.
INSTRUCTIONS = {config.name: config.instructions for config in (QUEUE, URGENT, MOOD)}


def digest(number: int) -> str:
    return f"sha256:{number:064d}"


def family(**queue: Any) -> tuple[AdapterHandle, ...]:
    """Return the adapters `triage`, `triage.mood` and `triage.urgent`, without order, with settings of the first."""
    return (
        handle("triage.urgent", digest(2), choices=("true", "false"), question=URGENT),
        handle("triage", digest(1), choices=CHOICES, question=QUEUE, **queue),
        handle("triage.mood", digest(3), choices=LEVELS, question=MOOD),
        handle("triages", digest(4), choices=("a", "b")),
        handle("open", digest(5)),
        handle("open2to3", digest(6), calibration=calibration(digest(6))),
    )


def engine(**queue: Any) -> FakeEngine:
    return FakeEngine(handles=family(**queue))


def choice(*values: str | bool, **fields: Any) -> dict[str, Any]:
    """Return a choice question of /v1/decisions, with a model's own instructions if it has the name of its question."""
    choices = [{"value": value} for value in values]
    return {"type": "choice", "instructions": _instructions(fields, "Which?"), "choices": choices, **fields}


def predicate(**fields: Any) -> dict[str, Any]:
    """Return a predicate of /v1/decisions, with instructions as of `choice`."""
    return {"type": "predicate", "instructions": _instructions(fields, "Is it so?"), **fields}


def score(*labels: str, **fields: Any) -> dict[str, Any]:
    """Return a score of /v1/decisions, with instructions as of `choice`."""
    levels = [{"label": label} for label in labels]
    return {"type": "score", "instructions": _instructions(fields, "How much?"), "levels": levels, **fields}


def _instructions(fields: dict[str, Any], usual: str) -> str:
    return INSTRUCTIONS.get(fields.get("name", ""), usual)
