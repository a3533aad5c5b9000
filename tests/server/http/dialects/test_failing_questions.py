"""POST /v1/decisions with a question that fails: none is answered, and each counts once."""

import asyncio

import pytest

from tests.server.decision_models import choice, predicate
from tests.server.fakes import CHOICES, Running

TEXT = "I was charged twice"


async def test_a_question_that_fails_ends_the_others_at_once(server: Running) -> None:
    server.engine.gate.clear()  # no pass ends
    body = {"model": "open", "input": TEXT, "questions": [predicate(), predicate(instructions="word " * 4097)]}
    async with asyncio.timeout(5):
        refused = await server.client.post("/v1/decisions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "prompt_too_long")
    assert await server.metric("blora_requests_total", adapter="open", outcome="prompt_too_long") == 1
    assert await server.metric("blora_requests_total", adapter="open", outcome="sibling_failed") == 1
    assert await server.metric("blora_requests_total", adapter="open", outcome="disconnected") == 0


async def test_nothing_is_computed_for_a_question_that_no_proof_covers(server: Running) -> None:
    questions = [predicate(instructions=f"{i}?") for i in range(40)]
    body = {"model": "open2to3", "input": TEXT, "questions": [*questions, choice("a", "b", "c", "d")]}
    server.engine.batches.clear()
    refused = (await server.client.post("/v1/decisions", json=body)).json()["error"]
    assert (refused["code"], refused["param"]) == ("not_calibrated", "questions[40]")
    assert server.engine.batches == []
    assert await server.metric("blora_requests_total", adapter="open2to3", outcome="not_calibrated") == 1
    assert await server.metric("blora_requests_total") == 1


async def test_a_failing_question_fails_the_request_once(server: Running) -> None:
    body = {
        "model": "triage",
        "input": "POISON",
        "questions": [predicate(name="urgent"), choice(*CHOICES, name="queue")],
    }
    response = await server.client.post("/v1/decisions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "model_failure")
    assert await server.metric("blora_requests_total", adapter="triage", outcome="model_failure") == 1
    assert await server.metric("blora_requests_total", adapter="unknown", outcome="model_failure") == 0


async def test_answers_of_a_failed_request_wait_for_no_outcome(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = []
    feedback = server.app.state.service.predictor().feedback
    monkeypatch.setattr(feedback, "predicted", lambda _, prediction_id, *rest, **named: waiting.append(prediction_id))
    questions = [predicate(instructions="Is it so?"), predicate(instructions="Is it POISON?")]
    body = {"model": "open", "input": TEXT, "questions": questions}
    assert (await server.client.post("/v1/decisions", json=body)).status_code == 500
    assert await server.metric("blora_requests_total", adapter="open", outcome="answered") == 0
    assert await server.metric("blora_requests_total", adapter="open", outcome="sibling_failed") == 1
    assert waiting == []
    given = (await server.client.post("/v1/decisions", json=body | {"questions": questions[:1] * 2})).json()["answers"]
    assert sorted(waiting) == sorted(answer["id"] for answer in given)


async def test_answers_of_the_parts_before_a_failure_count_as_given_to_nobody(server: Running) -> None:
    questions = [predicate(instructions=f"{i}?") for i in range(40)]
    body = {"model": "open", "input": TEXT, "questions": [*questions, predicate(instructions="Is it POISON?")]}
    assert (await server.client.post("/v1/decisions", json=body)).status_code == 500
    counts = {
        outcome: await server.metric("blora_requests_total", adapter="open", outcome=outcome)
        for outcome in ("answered", "model_failure")
    }
    assert counts == {"answered": 0, "model_failure": 1}
    assert await server.metric("blora_requests_total", adapter="open", outcome="sibling_failed") == 40
    assert await server.metric("blora_samples_per_request_count") == 0
    assert await server.metric("blora_request_seconds_count") == 1


async def test_after_an_error_no_further_question_is_asked(server: Running) -> None:
    questions = [predicate(instructions=f"{i}?") for i in range(200)]
    response = await server.client.post(
        "/v1/decisions", json={"model": "open", "input": "POISON", "questions": questions}
    )
    assert response.json()["error"]["code"] == "model_failure"
    assert 1 <= await server.metric("blora_requests_total", adapter="open", outcome="model_failure") <= 32
