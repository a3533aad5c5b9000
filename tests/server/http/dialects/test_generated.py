"""Requests made up from the OpenAPI document: every response is one that the document allows, and none a failure."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.server.decision_models import choice, engine, predicate
from tests.server.fakes import Running, running

MODELS = ("open", "open", "triage")
# Questions in place of made-up ones, whose many texts are rarely all good.
QUESTIONS: dict[str, Any] = {
    "/v1/decisions": [predicate(), choice(True, "a")],
    "/v1/systemone": {"q": {"type": "noul", "instructions": "Is it?"}},
}


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as found:
        yield found


@pytest.fixture
def server(portal: BlockingPortal) -> Iterator[Running]:
    with portal.wrap_async_context_manager(running(engine())) as up:
        yield up


@pytest.mark.parametrize("path", ["/v1/decisions", "/v1/systemone"])
def test_made_up_requests_get_documented_responses(portal: BlockingPortal, server: Running, path: str) -> None:
    document = portal.call(server.client.get, "/openapi.json").json()
    operation = schemathesis.openapi.from_dict(document)[path]["POST"]
    validators = {
        status: Draft202012Validator(
            {**response["content"]["application/json"]["schema"], "components": document["components"]}
        )
        for status, response in document["paths"][path]["post"]["responses"].items()
    }
    statuses: Counter[int] = Counter()

    @settings(max_examples=100, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(), st.sampled_from(MODELS), st.booleans())
    def ask(case: schemathesis.Case, model: str, good: bool) -> None:
        body: dict[str, Any] = {**case.body, "model": model}
        if good:
            body["questions"] = QUESTIONS[path]
        if not any((body.get("policy") or {}).values()):
            body.pop("policy", None)

        async def post() -> httpx.Response:
            content = json.dumps(body).encode()
            return await server.client.post(path, content=content, headers={"content-type": "application/json"})

        response = portal.call(post)
        statuses[response.status_code] += 1
        assert response.status_code < 500, response.text
        validators[str(response.status_code)].validate(response.json())

    ask()
    assert statuses[200] >= 3
    assert statuses[422] >= 10
