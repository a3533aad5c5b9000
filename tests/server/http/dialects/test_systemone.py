"""POST /v1/systemone: the same answers as of /v1/decisions, in TypeSafe's shape."""

from typing import Any

import pytest

from blora.decision.abstention import Policy
from tests.server.decision_models import LEVELS, choice, engine, predicate, score
from tests.server.fakes import CHOICES, Running, fake_probabilities, running

TEXT = "I was charged twice"
QUEUE = {"type": "choice", "criteria": dict.fromkeys(CHOICES)}
URGENT = {"type": "noul", "instructions": "Is it?"}
MOOD = {"type": "score", "criteria": list(LEVELS)}


async def ask(server: Running, questions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the response to a valid request."""
    body = {"model": "triage", "state": TEXT, "questions": questions, **fields}
    response = await server.client.post("/v1/systemone", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_it_gives_the_answers_of_v1_decisions_under_other_names(server: Running) -> None:
    body = await ask(server, {"queue": QUEUE, "urgent": URGENT, "mood": MOOD})
    questions = [choice(*CHOICES, name="queue"), predicate(name="urgent"), score(*LEVELS, name="mood")]
    response = await server.client.post(
        "/v1/decisions", json={"model": "triage", "input": TEXT, "questions": questions}
    )
    queue, urgent, mood = response.json()["answers"]
    assert body["model"] == "triage"
    assert body["usage"] == {"input_tokens": 4, "output_tokens": 0}
    answers = body["answers"]
    assert (answers["urgent"]["type"], answers["urgent"]["noul"]) == ("noul", urgent["probability"])
    assert answers["queue"]["probabilities"] == {p["value"]: p["probability"] for p in queue["probabilities"]}
    assert answers["queue"]["stds"] == {p["value"]: p["std"] for p in queue["probabilities"]}
    assert answers["mood"]["probabilities"] == {str(p["value"]): p["probability"] for p in mood["probabilities"]}
    assert answers["mood"]["legend"] == {"0": "calm", "1": "annoyed", "2": "angry"}
    for name, theirs in (("queue", queue), ("mood", mood), ("urgent", urgent)):
        for field in set(theirs) - {"id", "name", "type", "probabilities", "probability"}:
            assert answers[name][field] == theirs[field]


async def test_json_is_read_as_text(server: Running) -> None:
    answer = (await ask(server, {"urgent": URGENT}, state={"subject": "Größe", "n": [1]}))["answers"]["urgent"]
    probs = fake_probabilities('{"subject": "Größe", "n": [1]}', 2, 4, None).mean(0)
    assert answer["noul"] == pytest.approx(probs[0].item())


async def test_criteria_describe_the_choices_of_an_open_model(server: Running) -> None:
    questions = {
        "x": {"type": "choice", "instructions": {"ask": "Which?"}, "criteria": {"a": {"is": "first"}, "b": None}},
        "y": {"type": "noul", "criteria": {"true": "it is", "false": None}},
        "z": {"type": "score", "criteria": ["low", {"level": "high"}]},
    }
    answers = (await ask(server, questions, model="open"))["answers"]
    body = {"adapter": "open", "prompt": f'{TEXT}\n\n{{"ask": "Which?"}}', "choices": ['a: {"is": "first"}', "b"]}
    alone = (await server.client.post("/v1/predict", json=body)).json()
    assert list(answers["x"]["probabilities"].values()) == [p["probability"] for p in alone["probabilities"]]
    body = {"adapter": "open", "prompt": TEXT, "choices": ["true: it is", "false"]}
    alone = (await server.client.post("/v1/predict", json=body)).json()
    assert answers["y"]["noul"] == alone["probabilities"][0]["probability"]
    assert answers["z"]["legend"] == {"0": "low", "1": {"level": "high"}}


async def test_a_refusal_is_an_answer_of_a_type_that_clients_drop() -> None:
    async with running(engine(policy=Policy(min_confidence=0.8))) as server:
        questions = {"queue": QUEUE, "urgent": URGENT}
        answers = (await ask(server, questions, state="p=0.7 x"))["answers"]
        assert (answers["queue"]["choice"], answers["queue"]["abstained"]) == ("billing", True)
        answers = (await ask(server, questions, state="p=0.7 x", refuse=True))["answers"]
        assert answers["queue"]["type"] == "refusal"
        assert not {"choice", "probabilities"} & answers["queue"].keys()
        assert answers["urgent"]["type"] == "noul"


async def test_responses_have_the_request_id_under_the_protocols_name(server: Running) -> None:
    for body, status in (({"model": "triage", "state": TEXT, "questions": {"urgent": URGENT}}, 200), ({}, 422)):
        response = await server.client.post("/v1/systemone", json=body)
        assert response.status_code == status
        assert response.headers["x-typesafe-request-id"] == response.headers["x-request-id"]
    listed = (await server.client.get("/v1/models")).headers
    assert listed["x-typesafe-request-id"] == listed["x-request-id"]
    assert "x-typesafe-request-id" not in (await server.client.get("/livez")).headers


async def test_images_beside_the_json_are_refused_as_images(server: Running) -> None:
    parts = {"request": (None, b"{}", "application/json"), "asset-0": ("asset-0", b"\x89PNG", "image/png")}
    response = await server.client.post("/v1/systemone", files=parts)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "not_text", "assets")
    assert "reads text only" in error["message"]
    assert (await server.client.post("/v1/decisions", files=parts)).status_code == 415
    assert (await server.client.post("/v1/systemone", content=b"{}")).status_code == 415


async def test_images_that_are_longer_than_any_body_are_refused_as_images(server: Running) -> None:
    parts = {"asset-0": ("asset-0", b"\xff" * (2**20 + 1), "image/jpeg")}
    response = await server.client.post("/v1/systemone", files=parts)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "not_text")
    assert await server.metric("blora_requests_total", adapter="unknown", outcome="not_text") == 1
    assert (await server.client.post("/v1/predict", files=parts)).status_code == 413
    as_parts = {"content-type": response.request.headers["content-type"]}
    assert (await server.client.get("/v1/systemone", headers=as_parts)).status_code == 405


async def test_assets_may_be_null(server: Running) -> None:
    assert (await ask(server, {"urgent": URGENT}, assets=None))["answers"].keys() == {"urgent"}


async def test_names_may_be_anything(server: Running) -> None:
    questions = {"Ist es so?": URGENT, "": URGENT}
    response = await server.client.post("/v1/systemone", json={"model": "open", "state": TEXT, "questions": questions})
    assert response.json()["error"]["param"] == "questions[1]"
    answers = (await ask(server, {"Ist es so?": URGENT}, model="open"))["answers"]
    assert list(answers) == ["Ist es so?"]
