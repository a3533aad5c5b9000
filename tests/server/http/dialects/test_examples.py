"""The requests that the documents show are answered, and the README's as the demo's adapters are calibrated.

The rows for training in docs/decisions.md have no model.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from blora.config import QuestionConfig
from blora.server.engines.handle import AdapterHandle
from tests.server.calibrations import calibration
from tests.server.decision_models import digest, engine
from tests.server.fakes import FakeEngine, handle, running

ROOT = Path(__file__).parents[4]
DOCUMENT = (ROOT / "docs" / "decisions.md").read_text()
BODIES = list(map(json.loads, re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)))
REQUESTS = [body for body in BODIES if {"model", "questions"} <= body.keys()]


def path_of(body: dict[str, Any]) -> str:
    return "/v1/systemone" if "state" in body else "/v1/decisions"


@pytest.mark.parametrize("body", REQUESTS)
async def test_a_request_of_the_document_is_answered(body: dict[str, Any]) -> None:
    async with running(engine()) as server:
        response = await server.client.post(path_of(body), json=body)
        assert response.status_code == 200, response.text


def test_the_document_has_requests_to_both_routes() -> None:
    assert set(map(path_of, REQUESTS)) == {"/v1/decisions", "/v1/systemone"}


def unlike(shown: Any, got: Any) -> list[str]:
    """Return the fields that are shown and that an answer does not have, or has in another type."""
    if isinstance(shown, dict) and isinstance(got, dict):
        missing = sorted(shown.keys() - got.keys())
        return missing + [name for name in shown.keys() & got.keys() if unlike(shown[name], got[name])]
    return [] if type(shown) is type(got) else [f"{shown} and {got}"]


async def test_the_answer_of_the_document_has_the_fields_of_an_answer() -> None:
    [asked] = (body for body in REQUESTS if "state" in body)
    [shown] = (body for body in BODIES if "answers" in body)
    async with running(FakeEngine(handles=demo())) as server:
        got = (await server.client.post("/v1/systemone", json=asked)).json()
    assert unlike(shown, got) == []
    assert shown["answers"].keys() == got["answers"].keys()
    assert shown["answers"]["mood"]["legend"] == got["answers"]["mood"]["legend"]


def demo() -> tuple[AdapterHandle, ...]:
    """Return the demo's adapters, calibrated, without their weights."""
    handles = []
    for number, part in enumerate(("", ".urgent", ".mood")):
        config = json.loads((ROOT / "examples" / "triage" / f"adapter{part}" / "bayesian_config.json").read_text())
        question, choices = QuestionConfig(**config["question"]), tuple(config["prompt"]["choices"])
        proved = calibration(digest(number), most_choices=len(choices))
        handles.append(handle(f"triage{part}", digest(number), choices=choices, question=question, calibration=proved))
    return tuple(handles)


@pytest.mark.parametrize("name", ["README.md", "docs/decisions.md", "examples/triage/questions"])
async def test_the_demos_questions_are_answered_as_calibrated(name: str) -> None:
    match name:
        case "README.md":
            [shown] = re.findall(r"/v1/decisions -H '.*?' -d '(.*?)'\n", (ROOT / name).read_text(), re.DOTALL)
            questions = json.loads(shown)["questions"]
        case "docs/decisions.md":
            [shown] = re.findall(r"questions=(\[.*?\n    \]),", DOCUMENT, re.DOTALL)
            questions = ast.literal_eval(shown)
        case _:
            questions = [json.loads(file.read_text()) for file in sorted((ROOT / name).glob("*.json"))]
    async with running(FakeEngine(handles=demo())) as server:
        body = {"model": "triage", "input": "x", "questions": questions}
        answers = (await server.client.post("/v1/decisions", json=body)).json()["answers"]
    assert [answer["calibrated"] for answer in answers] == [True] * len(questions)
