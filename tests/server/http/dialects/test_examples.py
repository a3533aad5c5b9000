"""The requests that docs/decisions.md shows are answered; its rows for training have no model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.server.decision_models import engine
from tests.server.fakes import running

DOCUMENT = (Path(__file__).parents[4] / "docs" / "decisions.md").read_text()
BODIES = map(json.loads, re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL))
REQUESTS = [body for body in BODIES if "model" in body]


@pytest.mark.parametrize("body", REQUESTS)
async def test_a_request_of_the_document_is_answered(body: dict[str, Any]) -> None:
    async with running(engine()) as server:
        response = await server.client.post("/v1/decisions", json=body)
        assert response.status_code == 200, response.text


def test_the_document_has_requests() -> None:
    assert REQUESTS
