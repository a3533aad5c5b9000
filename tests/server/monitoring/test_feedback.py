"""Outcomes reported to a running app, and their effect on the metrics."""

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from blora.client import AsyncClient, RefusedError
from blora.server.keys import line_of
from blora.server.monitoring.feedback import Feedback
from blora.server.monitoring.ledgers.protocol import Settled
from blora.server.monitoring.recent_texts import AskedText
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, Running, handle, running

CALIBRATED = handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST))
TARGET = {"adapter": "triage", "target_risk": "0.05"}
# Different texts, since one answer about each is held against the promise.
SURE = (f"p=0.95 text {k}" for k in count())


@pytest.fixture
async def watched() -> AsyncIterator[Running]:
    async with running(FakeEngine(handles=(CALIBRATED,))) as server:
        yield server


async def ask(server: Running, prompt: str | None = None, **fields: Any) -> dict[str, Any]:
    body = {"prompt": prompt or next(SURE), **fields}
    answer: dict[str, Any] = (await server.client.post("/v1/predict", json=body)).json()
    return answer


async def tell(server: Running, prediction_id: str, label: str) -> httpx.Response:
    return await server.client.post("/v1/feedback", json={"prediction_id": prediction_id, "label": label})


async def test_an_outcome_is_held_against_the_promise(watched: Running) -> None:
    right, wrong = await ask(watched), await ask(watched)
    assert right["policy"]["target_risk"] == 0.05
    told = await tell(watched, right["id"], " billing ")
    assert (told.status_code, told.json()) == (200, {"correct": True})
    assert (await tell(watched, wrong["id"], "account")).json() == {"correct": False}
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="correct") == 1
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="wrong") == 1
    assert await watched.metric("blora_realised_risk", **TARGET) == 0.5


async def test_the_same_outcome_again_counts_once(watched: Running) -> None:
    answer = await ask(watched)
    for _ in range(3):
        assert (await tell(watched, answer["id"], "billing")).json() == {"correct": True}
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="correct") == 1
    assert await watched.metric("blora_outcome_corrections_total") == 0


@pytest.mark.parametrize("label", ["Billing", "biling", "anything at all", "\u200bbilling"])
async def test_a_label_that_was_not_offered_is_refused_and_counts_for_nothing(watched: Running, label: str) -> None:
    answer = await ask(watched)
    refused = await tell(watched, answer["id"], label)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (422, "label_not_offered", "label")
    assert await watched.metric("blora_outcomes_total") == 0
    assert (await tell(watched, answer["id"], "billing")).json() == {"correct": True}


async def test_an_answer_to_a_text_that_fits_no_choice_is_wrong_until_it_is_corrected(watched: Running) -> None:
    answer = await ask(watched)
    outcome = {"prediction_id": answer["id"], "none_of_these": True}
    for _ in range(2):
        told = await watched.client.post("/v1/feedback", json=outcome)
        assert (told.status_code, told.json()) == (200, {"correct": False})
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="wrong") == 1
    assert await watched.metric("blora_realised_risk", **TARGET) == 1
    assert (await tell(watched, answer["id"], "billing")).json() == {"correct": True}
    assert await watched.metric("blora_realised_risk", **TARGET) == 0


@pytest.mark.parametrize("outcome", [{}, {"none_of_these": False}, {"label": "billing", "none_of_these": True}])
async def test_an_outcome_is_a_label_or_none_of_these(watched: Running, outcome: dict[str, Any]) -> None:
    answer = await ask(watched)
    refused = await watched.client.post("/v1/feedback", json={"prediction_id": answer["id"]} | outcome)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "label")
    assert refused.json()["error"]["message"] == "The outcome is a label or none_of_these: send one of them."
    assert refused.json()["error"]["code"] == "conflict"
    assert await watched.metric("blora_outcomes_total") == 0


async def test_any_of_the_offered_choices_is_a_label(watched: Running) -> None:
    choices = [f"choice {k}" for k in range(64)]
    body = {"choices": choices, "policy": {"min_confidence": 0}}
    answer = await ask(watched, "which?", **body)
    for choice in choices:
        told = await tell(watched, answer["id"], choice)
        assert (told.status_code, told.json()) == (200, {"correct": choice == answer["top_choice"]})


async def test_an_endless_label_is_refused_unread(watched: Running) -> None:
    answer = await ask(watched)
    refused = await tell(watched, answer["id"], "x" * 40_000)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_length")


async def test_a_later_outcome_takes_the_place_of_an_earlier_one(watched: Running) -> None:
    first, second = await ask(watched), await ask(watched)
    await tell(watched, second["id"], "billing")
    told = [(await tell(watched, first["id"], label)).json() for label in ("account", "technical", "billing")]
    assert told == [{"correct": False}, {"correct": False}, {"correct": True}]
    assert await watched.metric("blora_realised_risk", **TARGET) == 0
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="wrong") == 1  # as it was told first
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="correct") == 1
    assert await watched.metric("blora_outcome_corrections_total", **TARGET, outcome="correct") == 1
    assert (await tell(watched, second["id"], "account")).json() == {"correct": False}
    assert await watched.metric("blora_realised_risk", **TARGET) == 0.5
    assert await watched.metric("blora_outcome_corrections_total", **TARGET, outcome="wrong") == 1


async def test_an_alarm_that_mistaken_outcomes_raised_is_silent_once_they_are_corrected(watched: Running) -> None:
    answers = [await ask(watched) for _ in range(8)]
    for answer in answers:
        await tell(watched, answer["id"], "account")
    assert await watched.metric("blora_promise_broken", **TARGET) == 1
    for answer in answers[:7]:
        await tell(watched, answer["id"], "billing")
    assert await watched.metric("blora_promise_broken", **TARGET) == 0
    assert await watched.metric("blora_realised_risk", **TARGET) == 1 / 8


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [("p=0.7", {}), ("p=0.95", {"policy": {"min_confidence": 0.5}})],  # withheld; answered by another policy
)
async def test_what_nothing_was_promised_of_is_not_counted(
    watched: Running, prompt: str, fields: dict[str, Any]
) -> None:
    answer = await ask(watched, prompt, **fields)
    assert (await tell(watched, answer["id"], "account")).json() == {"correct": False}
    assert await watched.metric("blora_outcomes_total") == 0


async def test_levels_are_promises_of_their_own(watched: Running) -> None:
    answer = await ask(watched, policy={"target_risk": 0.2})
    await tell(watched, answer["id"], "billing")
    assert await watched.metric("blora_outcomes_total", adapter="triage", target_risk="0.2", outcome="correct") == 1
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="correct") == 0


async def test_what_is_not_known_or_forgotten_is_told() -> None:
    async with running(FakeEngine(handles=(CALIBRATED,)), max_feedback_predictions=2) as server:
        ids = [(await ask(server))["id"] for _ in range(3)]
        codes = [(await tell(server, each, "billing")).status_code for each in (*ids, "pred_nobody")]
        assert codes == [404, 200, 200, 404]


async def test_what_a_predecessor_said_is_not_held_against_the_successor(tmp_path: Path) -> None:
    engine = FakeEngine(handles=(CALIBRATED,))
    (tmp_path / "keys").write_text(line_of("ops", "admin", "key") + "\n")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "contents").write_text("1")
    async with running(engine, api_keys=tmp_path / "keys", adapter_root=tmp_path) as server:
        server.client.headers["authorization"] = "Bearer key"
        before = [await ask(server) for _ in range(30)]
        engine.gate.clear()
        engine.computing.clear()
        late = asyncio.create_task(ask(server))
        await engine.computing.wait()
        await server.client.delete("/v1/adapters/triage")
        await server.client.post("/v1/adapters", json={"name": "triage", "path": "new"})
        engine.gate.set()
        for answer in [*before, await late]:
            assert (await tell(server, answer["id"], "account")).status_code == 404
        text = (await server.client.get("/metrics")).text
        assert "blora_promise_broken{" not in text
        feedback = server.app.state.service.predictor().feedback
        kept = (feedback._ledger._waiting, feedback._promises, feedback._promised_texts)
        assert [len(some) for some in kept] == [0, 0, 0]


async def test_an_outcome_that_is_stored_while_its_adapter_is_replaced_is_not_shown(
    watched: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = watched.app.state.service.predictor()
    ledger, answer = predictor.feedback._ledger, await ask(watched)
    settle = ledger.settle

    async def replaced(*args: Any) -> Settled:
        settled: Settled = await settle(*args)
        predictor.registry.remove("triage")
        predictor.registry.add(handle("triage", OPEN_DIGEST, choices=CHOICES))
        return settled

    monkeypatch.setattr(ledger, "settle", replaced)
    assert (await tell(watched, answer["id"], "account")).json() == {"correct": False}
    assert await watched.metric("blora_outcomes_total") == 0
    assert "blora_realised_risk{" not in (await watched.client.get("/metrics")).text
    assert not predictor.feedback._promises


async def test_nothing_of_the_question_is_kept(watched: Running) -> None:
    answer = await ask(watched, "p=0.95 a secret")
    waiting = watched.app.state.service.predictor().feedback._ledger._waiting
    [entry] = waiting.values()
    assert not any(word in str(entry) for word in ("secret", *CHOICES))
    assert answer["id"] in waiting


async def test_the_client_tells(watched: Running) -> None:
    transport = httpx.ASGITransport(watched.app)
    async with AsyncClient("http://test", transport=transport) as client:
        prediction = await client.predict("p=0.95")
        assert await client.feedback(prediction, "billing")
        assert not await client.feedback(prediction.id, "account")
        assert not await client.feedback(prediction, none_of_these=True)
        with pytest.raises(RefusedError, match="a label or none_of_these"):
            await client.feedback(prediction)
        with pytest.raises(RefusedError, match="not one of the choices that were offered") as info:
            await client.feedback(prediction, "sales")
        assert info.value.code == "label_not_offered"


async def test_only_the_key_that_asked_may_tell_or_an_admins(tmp_path: Path) -> None:
    lines = [line_of(name, "predict", name) for name in ("shop", "other")] + [line_of("ops", "admin", "ops")]
    (tmp_path / "keys").write_text("\n".join(lines))
    async with running(FakeEngine(handles=(CALIBRATED,)), api_keys=tmp_path / "keys") as server:

        def bear(key: str) -> None:
            server.client.headers["authorization"] = f"Bearer {key}"

        bear("shop")
        answer = await ask(server)
        bear("other")
        for label in ("account", "not offered"):
            refused = await tell(server, answer["id"], label)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_prediction")
        bear("shop")
        assert (await tell(server, answer["id"], "billing")).json() == {"correct": True}
        bear("ops")
        assert (await tell(server, answer["id"], "account")).json() == {"correct": False}


async def test_a_new_calibration_of_the_same_weights_starts_with_no_outcomes(watched: Running) -> None:
    service = watched.app.state.service
    before = await ask(watched)
    registry = service.predictor().registry
    registry.remove("triage")
    recalibrated = handle(
        "triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST, quantile=0.7)
    )
    registry.add(recalibrated)
    assert (await tell(watched, before["id"], "account")).status_code == 404
    await tell(watched, (await ask(watched))["id"], "billing")
    assert await watched.metric("blora_realised_risk", **TARGET) == 0


# Alarms


async def test_of_the_outcomes_about_one_text_one_is_held_against_the_promise(watched: Running) -> None:
    spellings = (
        "p=0.95 an odd caf\u00e9",
        "p=0.95  an odd cafe\u0301 ",
        "p=0.95 an odd\u00a0caf\u00e9\u200b",
        "p=0.95 an \u2060odd caf\u00e9",
    )
    for text in spellings:
        for _ in range(5):
            await tell(watched, (await ask(watched, text))["id"], "account")
    assert await watched.metric("blora_promised_answers_total", **TARGET, requested="true") == 1
    assert await watched.metric("blora_outcomes_total", **TARGET, requested="true", outcome="wrong") == 1
    assert await watched.metric("blora_outcomes_total", **TARGET, requested="false", outcome="wrong") == 19
    assert await watched.metric("blora_promise_broken", **TARGET) == 0
    await tell(watched, (await ask(watched))["id"], "billing")
    assert await watched.metric("blora_realised_risk", **TARGET) == 0.5


def predicted(feedback: Feedback, prediction_id: str, text: str | None = None, *, answered: bool = True) -> bool:
    """Record an answer "a" of two choices about a text of its own or another, and return whether it is requested."""
    return feedback.predicted(
        CALIBRATED,
        prediction_id,
        ("a", "b"),
        text=AskedText(text or prediction_id),
        leader=0,
        client=None,
        target_risk=0.05,
        answered=answered,
        familiarity=None,
        labels={},
    )


async def serve(server: Running, n: int, risk: float, seed: int = 0) -> int | None:
    """Report outcomes of answers, and return after how many of them the promise was called broken."""
    chance = random.Random(seed)
    feedback = server.app.state.service.predictor().feedback
    for k in range(n):
        predicted(feedback, f"pred_{seed}_{k}")
        await feedback.told(f"pred_{seed}_{k}", "b" if chance.random() < risk else "a", None)
        if k % 10 == 0 and await server.metric("blora_promise_broken", **TARGET):
            return k
    return None


async def test_a_broken_promise_raises_the_alarm_within_two_hundred_outcomes(watched: Running) -> None:
    noticed = await serve(watched, 1000, risk=0.15)
    assert noticed is not None
    assert noticed <= 200
    assert await watched.metric("blora_realised_risk_lower_bound", **TARGET) > 0.04


async def test_a_kept_one_is_silent_for_twenty_thousand(watched: Running) -> None:
    feedback = watched.app.state.service.predictor().feedback
    chance = random.Random(0)
    for k in range(20_000):
        predicted(feedback, f"pred_{k}")
        await feedback.told(f"pred_{k}", "b" if chance.random() < 0.045 else "a", None)
    assert await watched.metric("blora_promise_broken", **TARGET) == 0
    assert 0.04 < await watched.metric("blora_realised_risk", **TARGET) < 0.05


async def test_of_answers_under_a_promise_the_share_whose_outcome_was_told_is_shown(watched: Running) -> None:
    asked = [await ask(watched, prompt) for prompt in (None, None, None, None, "p=0.7")]
    await tell(watched, asked[0]["id"], "billing")
    await tell(watched, asked[4]["id"], "billing")  # withheld, so nothing was promised of it
    assert await watched.metric("blora_promised_answers_total", **TARGET, requested="true") == 4
    assert await watched.metric("blora_outcomes_total", **TARGET, requested="true", outcome="correct") == 1
    assert "feedback_requested" not in asked[0]
