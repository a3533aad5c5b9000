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
    """Return a choice question of /v1/decisions."""
    question = {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}
    return {**question, **fields}


def predicate(**fields: Any) -> dict[str, Any]:
    return {"type": "predicate", "instructions": "Is it so?", **fields}


def score(*labels: str, **fields: Any) -> dict[str, Any]:
    levels = [{"label": label} for label in labels]
    return {"type": "score", "instructions": "How much?", "levels": levels, **fields}
