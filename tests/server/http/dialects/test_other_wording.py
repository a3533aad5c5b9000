"""A model's own question in other words than its adapter's: answered, but not as proved, or refused."""

from typing import Any

import pytest

from tests.server.calibrations import calibration
from tests.server.decision_models import QUEUE, URGENT, choice, digest
from tests.server.fakes import CHOICES, FakeEngine, Running, handle, running

TRIAGE = handle("triage", digest(1), choices=CHOICES, question=QUEUE, calibration=calibration(digest(1)))
TRIAGE_URGENT = handle(
    "triage.urgent", digest(2), choices=("true", "false"), question=URGENT, calibration=calibration(digest(2))
)
OTHERWISE = "Can this wait until next week?"
OPPOSITE = {"true": "it can wait", "false": "it must be answered today"}


def calibrated() -> FakeEngine:
    return FakeEngine(handles=(TRIAGE, TRIAGE_URGENT))


async def noul(server: Running, text: str = "p=0.99 x", **fields: Any) -> dict[str, Any]:
    """Return the answer to the noul `urgent`."""
    body = {"model": "triage", "state": text, "questions": {"urgent": {"type": "noul", **fields}}}
    response = await server.client.post("/v1/systemone", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()["answers"]["urgent"]
    return answer


async def test_the_adapters_own_words_are_answered_as_proved() -> None:
    async with running(calibrated()) as server:
        answer = await noul(server, instructions=URGENT.instructions)
    assert (answer["calibrated"], answer["policy"]["target_risk"]) == (True, 0.05)
    assert answer["prediction_set"] == [True]
    assert "warnings" not in answer


async def test_other_instructions_are_answered_under_the_same_thresholds_and_nothing_is_promised() -> None:
    async with running(calibrated()) as server:
        sure, unsure = [await noul(server, text, instructions=OTHERWISE) for text in ("p=0.99 x", "p=0.7 x")]
        assert await server.metric("blora_promised_answers_total") == 0
    assert (sure["noul"], sure["calibrated"], sure["prediction_set"]) == (pytest.approx(0.99), False, None)
    assert sure["policy"] == {"min_confidence": 0.9, "source": "adapter"}
    assert sure["warnings"] == ["other_instructions"]
    assert sure["uncalibrated_because"] == (
        "Adapter 'triage.urgent' was calibrated with its own instructions; the request has other instructions."
    )
    assert [sure["abstained"], unsure["abstained"]] == [False, True]


async def test_a_proof_that_the_request_asks_for_is_refused_for_other_instructions() -> None:
    questions = {"urgent": {"type": "noul", "instructions": OTHERWISE}}
    body = {"model": "triage", "state": "x", "questions": questions, "policy": {"target_risk": 0.05}}
    async with running(calibrated()) as server:
        response = await server.client.post("/v1/systemone", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (422, "not_calibrated", "questions.urgent")
    assert "other instructions" in error["message"]


async def test_a_predicate_of_other_criteria_is_another_question() -> None:
    body = {
        "model": "triage",
        "state": "p=0.99 x",
        "questions": {"urgent": {"type": "noul", "instructions": OTHERWISE, "criteria": OPPOSITE}},
    }
    async with running(calibrated()) as server:
        response = await server.client.post("/v1/systemone", json=body)
        added = await noul(server, instructions=URGENT.instructions, criteria=OPPOSITE)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (422, "unknown_question", "questions.urgent")
    assert "other criteria of a predicate" in error["message"]
    assert (added["calibrated"], added["warnings"]) == (False, ["other_descriptions"])


async def test_choices_described_in_other_words_are_not_answered_as_proved() -> None:
    async with running(calibrated()) as server:
        for meaning, proved in (("money", True), (None, True), ("all but money", False)):
            described = [
                {"value": "billing", "description": meaning},
                *({"value": value} for value in CHOICES if value != "billing"),
            ]
            body = {"model": "triage", "input": "p=0.99 x", "questions": [choice(choices=described, name="queue")]}
            [answer] = (await server.client.post("/v1/decisions", json=body)).json()["answers"]
            assert (answer["calibrated"], "target_risk" in answer["policy"]) == (proved, proved)
            assert answer.get("warnings", []) == ([] if proved else ["other_descriptions"])


CHATS: dict[str, tuple[list[dict[str, str]], bool]] = {
    "a user": ([{"role": "user", "content": "p=0.99 x"}], True),
    "a developer and a user": ([{"role": "developer", "content": "p=0.99 x"}, {"role": "user", "content": "y"}], False),
    "a user and an assistant": (
        [{"role": "user", "content": "p=0.99 x"}, {"role": "assistant", "content": "y"}],
        False,
    ),
}


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_with_others_than_users_is_answered_under_thresholds_of_the_request_alone(name: str) -> None:
    items, proved = CHATS[name]
    body = {"model": "triage", "input": items, "questions": [choice(*CHOICES, name="queue")]}
    async with running(calibrated()) as server:
        plain, asked, own = [
            await server.client.post("/v1/decisions", json=body | fields)
            for fields in ({}, {"policy": {"target_risk": 0.05}}, {"policy": {"min_confidence": 0.5}})
        ]
        assert await server.metric("blora_promised_answers_total") == (2 if proved else 0)
    assert [plain.status_code, asked.status_code] == ([200, 200] if proved else [422, 422])
    for refused in () if proved else (plain, asked):
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("not_calibrated", "input")
        assert "items of others than users" in error["message"]
        assert "send the user's text alone, or send policy thresholds of your own" in error["message"]
    [answer] = own.json()["answers"]
    assert (answer["calibrated"], answer["prediction_set"] is not None) == (proved, proved)
    assert answer["policy"] == {"min_confidence": 0.5, "source": "request"}
    assert answer.get("warnings", []) == ([] if proved else ["other_input"])


@pytest.mark.parametrize(
    "worded",
    [
        {"instructions": OTHERWISE},
        {"choices": [{"value": value, "description": "anything"} for value in CHOICES]},
    ],
    ids=lambda worded: "".join(worded),
)
async def test_a_chat_is_refused_however_its_question_is_worded(worded: dict[str, Any]) -> None:
    items, _ = CHATS["a developer and a user"]
    body = {"model": "triage", "input": items, "questions": [choice(*CHOICES, name="queue") | worded]}
    async with running(calibrated()) as server:
        response = await server.client.post("/v1/decisions", json=body)
        as_text = await server.client.post("/v1/decisions", json=body | {"input": "p=0.99 x"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (422, "not_calibrated", "input")
    assert (as_text.status_code, as_text.json()["answers"][0]["calibrated"]) == (200, False)


async def test_a_models_only_adapter_without_fixed_choices_answers_other_questions() -> None:
    below = handle("desk.any", digest(3))
    async with running(
        FakeEngine(handles=(handle("desk", digest(4), choices=("a", "b")), below)), default_adapter="desk"
    ) as server:
        body = {"model": "desk", "input": "x", "questions": [choice("p", "q", name="new")]}
        [answer] = (await server.client.post("/v1/decisions", json=body)).json()["answers"]
    assert (answer["adapter"]["name"], {entry["value"] for entry in answer["probabilities"]}) == (
        "desk.any",
        {"p", "q"},
    )


async def test_an_adapter_without_words_of_its_own_says_that_it_could_not_compare_those_of_the_request() -> None:
    wordless = handle("mail", digest(1), choices=CHOICES, calibration=calibration(digest(1)))
    body = {
        "model": "mail",
        "input": "p=0.99 x",
        "questions": [choice(*CHOICES, instructions="Who should NOT get it?")],
    }
    async with running(FakeEngine(handles=(wordless,)), default_adapter="mail") as server:
        response = await server.client.post("/v1/decisions", json=body)
    assert response.status_code == 200, response.text
    [answer] = response.json()["answers"]
    assert (answer["calibrated"], answer["warnings"]) == (True, ["unchecked_wording"])
