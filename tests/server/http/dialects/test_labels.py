"""Outcomes of typed questions, reported by the values that requests and answers name."""

from typing import Any

import pytest

from blora.config import QuestionConfig
from tests.server.decision_models import LEVELS, choice, digest, engine, predicate, score
from tests.server.fakes import CHOICES, FakeEngine, Running, handle, running

NOT_OFFERED = "label_not_offered"
# A text on the first option of which the fake model puts nearly all probability.
FIRST = "p=0.9 x"


async def outcomes(server: Running, answer: dict[str, Any], *labels: Any) -> list[Any]:
    """Return for each label whether the leading choice was right, or the code of the error."""
    found = []
    for label in labels:
        body = {"prediction_id": answer["id"], "label": label}
        told = (await server.client.post("/v1/feedback", json=body)).json()
        found.append(told["correct"] if "correct" in told else told["error"]["code"])
    return found


async def decided(server: Running, question: dict[str, Any], model: str = "open") -> dict[str, Any]:
    """Return the answer of /v1/decisions."""
    body = {"model": model, "input": FIRST, "questions": [question]}
    [answer] = (await server.client.post("/v1/decisions", json=body)).json()["answers"]
    found: dict[str, Any] = answer
    return found


async def noted(server: Running, model: str = "open", **question: Any) -> dict[str, Any]:
    """Return the answer of /v1/systemone to one question, `mood`."""
    body = {"model": model, "state": FIRST, "questions": {"mood": question}}
    answer: dict[str, Any] = (await server.client.post("/v1/systemone", json=body)).json()["answers"]["mood"]
    return answer


async def test_a_level_is_reported_by_the_requests_words_the_adapters_or_its_number() -> None:
    async with running(engine()) as server:
        answer = await noted(server, "triage", type="score", criteria=["calm", "annoyed", "swears"])
        assert await outcomes(server, answer, "calm", 0, "0") == [True] * 3
        assert await outcomes(server, answer, *answer["legend"].values(), *answer["legend"]) == [True, False, False] * 2
        assert await outcomes(server, answer, "angry", "swears", 2, "2") == [False] * 4
        assert await outcomes(server, answer, "furious", 3, "3", True) == [NOT_OFFERED] * 4


async def test_a_level_that_is_not_a_text_is_reported_by_its_number() -> None:
    async with running(engine()) as server:
        answer = await noted(server, type="score", instructions="?", criteria=["low", {"k": [1, 2]}])
        assert await outcomes(server, answer, 0, 1, '{"k": [1, 2]}') == [True, False, False]


@pytest.mark.parametrize("criteria", [None, {"true": "it can wait", "false": {"k": [1, 2]}}])
async def test_a_predicate_is_reported_by_true_and_false(criteria: dict[str, Any] | None) -> None:
    async with running(engine()) as server:
        answer = await noted(server, type="noul", instructions="?", criteria=criteria)
        assert await outcomes(server, answer, True, "true", False, "false") == [True, True, False, False]
        assert await outcomes(server, answer, "yes", 1, 0) == [NOT_OFFERED] * 3
        own = await decided(server, predicate(name="urgent"), "triage")
        assert await outcomes(server, own, True, "true", False, "false") == [True, True, False, False]


async def test_a_described_choice_is_reported_by_its_value_or_as_it_is_read() -> None:
    described = [{"value": "a", "description": "the first"}, {"value": "b"}]
    async with running(engine()) as server:
        answer = await decided(server, choice(choices=described))
        assert await outcomes(server, answer, "a", " a ", "a: the first", "b") == [True, True, True, False]


async def test_a_boolean_and_its_text_are_two_values() -> None:
    async with running(engine()) as server:
        answer = await decided(server, choice("true", True, False))
        assert answer["choice"] == "true"
        labels = ("true", '"true"', True, False, "false")
        assert await outcomes(server, answer, *labels) == [True, True, False, False, False]
        answer = await decided(server, choice(True, "true", False))
        assert answer["choice"] is True
        assert await outcomes(server, answer, *labels) == [False, False, True, False, False]


async def test_a_number_that_is_the_label_of_another_level_is_no_level_number_as_a_text() -> None:
    async with running(engine()) as server:
        answer = await decided(server, score("1", "2", "3"))
        assert await outcomes(server, answer, "1", 0, "2", 1) == [True, True, False, False]
        assert await outcomes(server, answer, "0") == [NOT_OFFERED]
        counted = await decided(server, score("0", "1", "2"))
        assert await outcomes(server, counted, "0", 0, "1", 1) == [True, True, False, False]


async def test_the_order_of_choices_is_the_requests() -> None:
    async with running(engine()) as server:
        answer = await decided(server, choice(*reversed(CHOICES), name="queue"), "triage")
        assert await outcomes(server, answer, answer["choice"], *CHOICES) == [True, True, False, False]
        mood = await decided(server, score(*LEVELS, name="mood"), "triage")
        assert await outcomes(server, mood, *(entry["value"] for entry in mood["probabilities"])) == [
            True,
            False,
            False,
        ]


async def predicted(server: Running, adapter: str, **fields: Any) -> dict[str, Any]:
    """Return the answer of /v1/predict."""
    response = await server.client.post("/v1/predict", json={"adapter": adapter, "prompt": FIRST, **fields})
    answer: dict[str, Any] = response.json()
    return answer


async def test_a_typed_questions_labels_are_those_of_its_adapter_asked_without_a_question() -> None:
    async with running(engine()) as server:
        urgent = await predicted(server, "triage.urgent")
        assert await outcomes(server, urgent, True, "true", False, "false") == [True, True, False, False]
        assert await outcomes(server, urgent, 0) == [NOT_OFFERED]
        mood = await predicted(server, "triage.mood")
        assert await outcomes(server, mood, 0, "0", "calm", 1, "angry") == [True, True, True, False, False]
        assert await outcomes(server, mood, 3, True) == [NOT_OFFERED] * 2
        batch = await predicted(server, "triage.mood", inputs=[{}])
        assert await outcomes(server, batch["predictions"][0], 0) == [True]


async def test_levels_keep_their_numbers_in_another_order_and_other_choices_have_none() -> None:
    async with running(engine()) as server:
        mood = await predicted(server, "triage.mood", choices=["angry", "calm ", "annoyed"])
        assert await outcomes(server, mood, 2, "angry", 0, 1) == [True, True, False, False]
        other = await predicted(server, "triage.mood", choices=["angry", "calm", "furious"])
        assert await outcomes(server, other, "angry", 2, "2") == [True, NOT_OFFERED, NOT_OFFERED]
        queue = await predicted(server, "triage")
        assert await outcomes(server, queue, CHOICES[0], 0, True) == [True, NOT_OFFERED, NOT_OFFERED]


@pytest.mark.parametrize(
    ("levels", "numbers"), [(("1", "2", "3"), [NOT_OFFERED] * 2), (("0", "1", "2"), [True, False])]
)
async def test_a_number_that_could_be_a_level_or_its_text_is_no_label_of_an_answer_without_a_question(
    levels: tuple[str, ...], numbers: list[Any]
) -> None:
    question = QuestionConfig(name="stars", type="score", instructions="How many stars?")
    stars = handle("stars", digest(1), choices=levels, question=question)
    async with running(FakeEngine(handles=(stars,)), default_adapter="stars") as server:
        answer = await predicted(server, "stars")
        assert await outcomes(server, answer, levels[0], levels[1]) == [True, False]
        assert await outcomes(server, answer, 0, 1) == numbers


@pytest.mark.parametrize("label", [-1, 255, 10**400, 1.5, None, [], {}])
async def test_a_label_of_another_type_is_refused(label: Any) -> None:
    async with running(engine()) as server:
        answer = await decided(server, score("a", "b"))
        assert await outcomes(server, answer, label) == ["invalid_type"]
