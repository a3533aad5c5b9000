"""The application as a whole: its OpenAPI document is correct."""

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from blora.server.errors import CODES
from blora.server.keys import line_of
from tests.server.fakes import FakeEngine, Running, running
from tests.server.http.test_bad_requests import BAD_BODIES

GOOD = [
    {"prompt": "x"},
    {"messages": [{"role": "user", "content": "x"}], "choices": ["a", "b"], "scoring": "label"},
    {"prompt": "x", "n_samples": 4, "seed": 3, "policy": {"min_confidence": 0.9}, "return_samples": True},
    {"inputs": [{"prompt": "x"}, {"prompt": "y", "seed": 1}, {"prompt": "POISON"}], "adapter": "triage"},
]
# What a schema can say, but for the operator's cap, 16.0 (an integer in JSON Schema) and the last digit of 2^63.
SCHEMA_CODES = {"unknown_field", "invalid_type", "out_of_range", "invalid_length", "invalid_value"}
BEYOND_SCHEMAS = {"too many samples", "enormously many", "samples in a float", "seed of 2^63"}
MALFORMED = [name for name, bad in BAD_BODIES.items() if bad.code in SCHEMA_CODES and name not in BEYOND_SCHEMAS]


@pytest.fixture
async def document(server: Running) -> dict[str, Any]:
    read: dict[str, Any] = (await server.client.get("/openapi.json")).json()
    return read


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def predict_of(document: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = document["paths"]["/v1/predict"]["post"]
    return operation


def request_schema(document: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = predict_of(document)["requestBody"]["content"]["application/json"]["schema"]
    return schema


def response_schema(document: dict[str, Any], status: int) -> dict[str, Any]:
    schema: dict[str, Any] = predict_of(document)["responses"][str(status)]["content"]["application/json"]["schema"]
    return schema


async def test_the_paths_are_those_of_the_contract(document: dict[str, Any]) -> None:
    assert document["paths"].keys() == {
        "/v1/predict", "/v1/decisions", "/v1/systemone", "/v1/models", "/v1/models/{name}", "/v1/adapters", "/v1/adapters/{name}", "/v1/feedback",
        "/livez", "/readyz", "/metrics", "/info",
    }  # fmt: skip


@pytest.mark.parametrize("body", GOOD)
async def test_good_requests_and_their_answers_fit_the_document(
    server: Running, document: dict[str, Any], body: dict[str, Any]
) -> None:
    validator(document, request_schema(document)).validate(body)
    response = await server.client.post("/v1/predict", json=body)
    assert response.status_code == 200
    validator(document, response_schema(document, 200)).validate(response.json())


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_requests_do_not_fit_the_document(document: dict[str, Any], name: str) -> None:
    assert not validator(document, request_schema(document)).is_valid(BAD_BODIES[name].body)


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_errors_fit_the_document(server: Running, document: dict[str, Any], name: str) -> None:
    response = await server.client.post("/v1/predict", json=BAD_BODIES[name].body)
    validator(document, response_schema(document, response.status_code)).validate(response.json())


async def test_every_code_of_a_prediction_is_documented(document: dict[str, Any]) -> None:
    responses = predict_of(document)["responses"]
    told = {code for response in responses.values() for code in response["description"].split(", ")}
    elsewhere = {code for code in CODES if "adapter" in code or "feedback" in code} - {"unknown_adapter"}
    elsewhere |= {
        "disconnected",
        "not_found",
        "method_not_allowed",
        "forbidden",
        "unknown_prediction",
        "label_not_offered",
    }
    elsewhere |= {"not_text", "unknown_question"}  # of typed questions
    assert CODES.keys() - told == elsewhere


@pytest.mark.parametrize("path", ["/v1/models", "/livez", "/readyz", "/info"])
async def test_other_answers_fit_the_document(server: Running, document: dict[str, Any], path: str) -> None:
    schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    validator(document, schema).validate((await server.client.get(path)).json())


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/adapters/triage", "DELETE, GET, HEAD, PUT"),
        ("DELETE", "/v1/adapters", "GET, HEAD, POST"),
        ("GET", "/v1/predict", "POST"),
    ],
)
async def test_a_wrong_method_is_told_all_that_are_there(method: str, path: str, allowed: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line_of("ops", "admin", "key-of-ops") + "\n")
    async with running(FakeEngine(), api_keys=keys, adapter_root=tmp_path) as server:
        response = await server.client.request(method, path, headers={"authorization": "Bearer key-of-ops"})
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
