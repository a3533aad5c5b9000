"""Orders change nothing: that of a question's choices, and that and the number of the questions beside it."""

from collections.abc import Iterator
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.decision_models import LEVELS, choice, engine, predicate, score
from tests.server.fakes import CHOICES, Running, running

OTHERS = [
    predicate(name="urgent"),
    score(*LEVELS, name="mood"),
    predicate(name="urgent"),
    choice(*CHOICES, name="queue"),
]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40).filter(str.strip)


@pytest.fixture(scope="module")
def asking() -> Iterator[tuple[BlockingPortal, Running]]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running(engine())) as server:
        yield portal, server


def by_value(answer: dict[str, Any]) -> dict[str, float]:
    return {entry["value"]: entry["probability"] for entry in answer["probabilities"]}


@settings(max_examples=40)
@given(
    TEXTS, st.permutations(CHOICES), st.permutations(OTHERS), st.integers(0, len(OTHERS)), st.integers(0, len(OTHERS))
)
def test_orders_and_siblings_change_no_answer(
    asking: tuple[BlockingPortal, Running], text: str, values: list[str], others: list[Any], n: int, place: int
) -> None:
    portal, server = asking

    async def ask(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        body = {"model": "triage", "input": text, "questions": questions}
        response = await server.client.post("/v1/decisions", json=body)
        assert response.status_code == 200, response.text
        answers: list[dict[str, Any]] = response.json()["answers"]
        return answers

    [alone] = portal.call(ask, [choice(*CHOICES, name="queue")])
    siblings = others[:n]
    at = min(place, n)
    answers = portal.call(ask, [*siblings[:at], choice(*values, name="queue"), *siblings[at:]])
    assert [answer["name"] for answer in answers[:at] + answers[at + 1 :]] == [other["name"] for other in siblings]
    answer = answers[at]
    assert [entry["value"] for entry in answer["probabilities"]] == values
    assert by_value(answer) == by_value(alone)
    for field in ("choice", "confidence", "margin", "predictive_entropy", "mutual_information", "abstained"):
        assert answer[field] == pytest.approx(alone[field], abs=1e-12)
