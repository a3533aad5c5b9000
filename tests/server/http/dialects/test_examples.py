"""The requests that docs/decisions.md shows are answered."""

import json
import re
from pathlib import Path

import pytest

from tests.server.decision_models import engine
from tests.server.fakes import running

DOCUMENT = (Path(__file__).parents[4] / "docs" / "decisions.md").read_text()
REQUESTS = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("body", REQUESTS)
async def test_a_request_of_the_document_is_answered(body: str) -> None:
    async with running(engine()) as server:
        response = await server.client.post("/v1/decisions", json=json.loads(body))
        assert response.status_code == 200, response.text


def test_the_document_has_requests() -> None:
    assert REQUESTS
