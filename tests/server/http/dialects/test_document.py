"""/openapi.json is true of the routes of typed questions."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from blora.decision.abstention import Policy
from tests.server.decision_models import LEVELS, choice, engine, predicate, score
from tests.server.fakes import CHOICES, Running, running
from tests.server.http.dialects.test_bad_decisions import DECISIONS, SYSTEMONE

PATHS = {"/v1/decisions": DECISIONS, "/v1/systemone": SYSTEMONE}
THREE = [choice(*CHOICES, name="queue"), predicate(name="urgent"), score(*LEVELS, name="mood")]
NAMED = {
    "queue": {"type": "choice", "criteria": dict.fromkeys(CHOICES)},
    "urgent": {"type": "noul", "instructions": ["x"]},
    "mood": {"type": "score", "criteria": list(LEVELS)},
}
TURNS = [
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
    {"type": "function_call_output", "call_id": "c", "output": ""},
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "phase": "final_answer"},
]
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/decisions", {"model": "triage", "input": "p=0.7 x", "questions": THREE}),
    ("/v1/decisions", {"model": "triage", "input": "p=0.7 x", "questions": THREE, "refuse": True}),
    ("/v1/decisions", {"model": "open", "input": TURNS, "questions": [choice(True, "true"), predicate()]}),
    (
        "/v1/decisions",
        {
            "model": "open",
            "input": "x",
            "questions": [predicate(instructions=[{"type": "input_text", "text": "Is it?"}])],
            "policy": {"min_confidence": 0.5},
            "prompt_cache_key": "k",
            "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
            "safety_identifier": "u",
        },
    ),
    ("/v1/systemone", {"model": "triage", "state": "p=0.7 x", "questions": NAMED}),
    ("/v1/systemone", {"model": "triage", "state": {"a": [1]}, "questions": NAMED, "refuse": True}),
]
# What a schema of JSON cannot say.
BEYOND_SCHEMAS = {
    *("blank input", "no parts", "no items", "1025 items", "empty input", "empty content", "empty instructions"),
    *(
        "an empty value",
        "a blank value",
        "an output without call",
        "an output before its call",
        "no content",
        "empty state",
    ),
    *("assets", "images", "a long name", "a blank label", "a noul without a question", "a noul of empty criteria"),
    *("a noul of blank texts", "a noul of an empty object", "an empty policy"),
}


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running(engine(policy=Policy(min_confidence=0.8))) as up:
        yield up


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def request_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    schema: dict[str, Any] = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return schema


def response_schema(document: dict[str, Any], path: str, status: int) -> dict[str, Any]:
    responses = document["paths"][path]["post"]["responses"]
    schema: dict[str, Any] = responses[str(status)]["content"]["application/json"]["schema"]
    return schema


@pytest.mark.parametrize(("path", "body"), GOOD)
async def test_good_requests_and_their_answers_fit_the_document(
    server: Running, path: str, body: dict[str, Any]
) -> None:
    document = (await server.client.get("/openapi.json")).json()
    validator(document, request_schema(document, path)).validate(body)
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    validator(document, response_schema(document, path, 200)).validate(response.json())


@pytest.mark.parametrize("path", PATHS)
async def test_malformed_requests_do_not_fit_the_document_and_errors_do(server: Running, path: str) -> None:
    document = (await server.client.get("/openapi.json")).json()
    schema = validator(document, request_schema(document, path))
    malformed = {"invalid_type", "missing", "invalid_length", "invalid_value", "unknown_field", "not_text"}
    for name, bad in PATHS[path].items():
        if bad.code in malformed and name not in BEYOND_SCHEMAS:
            assert not schema.is_valid(bad.body), name
        response = await server.client.post(path, json=bad.body)
        validator(document, response_schema(document, path, response.status_code)).validate(response.json())


@pytest.mark.parametrize("path", PATHS)
async def test_every_code_is_documented(server: Running, path: str) -> None:
    document = (await server.client.get("/openapi.json")).json()
    responses = document["paths"][path]["post"]["responses"]
    told = {code for response in responses.values() for code in response["description"].split(", ")}
    assert {bad.code for bad in PATHS[path].values()} <= told


async def test_the_model_list_is_typesafes_too(server: Running) -> None:
    listed = (await server.client.get("/v1/models")).json()
    models = {model["name"]: model for model in listed["models"]}
    assert set(models) == {card["id"] for card in listed["data"]} - {"fake"}
    assert models["triage.urgent"] == {
        "name": "triage.urgent",
        "description": "Answers the predicate 'urgent'. Does it have to be answered today?",
        "release_date": "2023-11-14",
    }
    assert models["triages"]["description"] == "Answers with one of 2 fixed choices."
    assert models["open"]["description"] == "Answers questions that bring their choices."
