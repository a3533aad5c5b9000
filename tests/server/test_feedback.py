"""Outcomes that are told to a running app, and what the metrics make of them."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from blora.client import AsyncClient, RefusedError
from blora.server.keys import line_of
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, TRIAGE_DIGEST, FakeEngine, Running, handle, running

CALIBRATED = handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST))
TARGET = {"adapter": "triage", "target_risk": "0.05"}


@pytest.fixture
async def watched() -> AsyncIterator[Running]:
    async with running(FakeEngine(handles=(CALIBRATED,))) as server:
        yield server


async def ask(server: Running, prompt: str = "p=0.95", **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = (await server.client.post("/v1/predict", json={"prompt": prompt, **fields})).json()
    return answer


async def tell(server: Running, prediction_id: str, label: str) -> httpx.Response:
    return await server.client.post("/v1/feedback", json={"prediction_id": prediction_id, "label": label})


async def test_an_outcome_is_held_against_the_promise(watched: Running) -> None:
    right, wrong = await ask(watched), await ask(watched)
    assert right["policy"]["target_risk"] == 0.05
    told = await tell(watched, right["id"], " billing ")
    assert (told.status_code, told.json()) == (200, {"correct": True})
    assert (await tell(watched, wrong["id"], "sales")).json() == {"correct": False}
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="correct") == 1
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="wrong") == 1
    assert await watched.metric("blora_realised_risk", **TARGET) == 0.5


async def test_the_same_outcome_again_counts_once_and_another_is_refused(watched: Running) -> None:
    answer = await ask(watched)
    for _ in range(3):
        assert (await tell(watched, answer["id"], "billing")).json() == {"correct": True}
    other = await tell(watched, answer["id"], "sales")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "feedback_conflict")
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="correct") == 1
    assert await watched.metric("blora_outcomes_total", **TARGET, outcome="wrong") == 0


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [("p=0.7", {}), ("p=0.95", {"policy": {"min_confidence": 0.5}})],  # withheld; answered by another policy
)
async def test_what_nothing_was_promised_of_is_not_counted(
    watched: Running, prompt: str, fields: dict[str, Any]
) -> None:
    answer = await ask(watched, prompt, **fields)
    assert (await tell(watched, answer["id"], "sales")).json() == {"correct": False}
    assert "blora_outcomes_total{" not in (await watched.client.get("/metrics")).text


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
            assert (await tell(server, answer["id"], "sales")).status_code == 404
        text = (await server.client.get("/metrics")).text
        assert "blora_promise_broken{" not in text
        assert "blora_uncertainty_drift{" not in text
        feedback = server.app.state.service.predictor().feedback
        kept = (feedback._ledger._waiting, feedback._promises, feedback._windows)
        assert [len(some) for some in kept] == [0, 0, 0]


async def test_nothing_of_the_question_is_kept(watched: Running) -> None:
    answer = await ask(watched, "p=0.95 a secret")
    waiting = watched.app.state.service.predictor().feedback._ledger._waiting
    [entry] = waiting.values()
    assert not any("secret" in str(value) or "billing" in str(value) for value in (entry.leader, entry.target_risk))
    assert answer["id"] in waiting


async def test_the_client_tells(watched: Running) -> None:
    transport = httpx.ASGITransport(watched.app)
    async with AsyncClient("http://test", transport=transport) as client:
        prediction = await client.predict("p=0.95")
        assert await client.feedback(prediction, "billing")
        assert await client.feedback(prediction.id, "billing")
        with pytest.raises(RefusedError, match="another label") as info:
            await client.feedback(prediction, "sales")
        assert info.value.code == "feedback_conflict"


# Alarms


async def serve(server: Running, n: int, risk: float, seed: int = 0) -> int | None:
    """Answers and their outcomes; returns after how many the promise was called broken."""
    chance = random.Random(seed)
    feedback = server.app.state.service.predictor().feedback
    for k in range(n):
        feedback.predicted(CALIBRATED, f"pred_{seed}_{k}", "a", target_risk=0.05, predictive_entropy=None)
        await feedback.told(f"pred_{seed}_{k}", "b" if chance.random() < risk else "a")
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
        feedback.predicted(CALIBRATED, f"pred_{k}", "a", target_risk=0.05, predictive_entropy=None)
        await feedback.told(f"pred_{k}", "b" if chance.random() < 0.045 else "a")
    assert await watched.metric("blora_promise_broken", **TARGET) == 0
    assert 0.04 < await watched.metric("blora_realised_risk", **TARGET) < 0.05


async def test_of_answers_under_a_promise_the_share_whose_outcome_was_told_is_shown(watched: Running) -> None:
    asked = [await ask(watched, prompt) for prompt in ("p=0.95", "p=0.95", "p=0.95", "p=0.95", "p=0.7")]
    await tell(watched, asked[0]["id"], "billing")
    await tell(watched, asked[4]["id"], "billing")  # withheld, so nothing was promised of it
    assert await watched.metric("blora_promised_answers_total", **TARGET, requested="true") == 4
    assert await watched.metric("blora_outcomes_total", **TARGET, requested="true", outcome="correct") == 1
    assert "feedback_requested" not in asked[0]


async def volunteered(risk: float, rate: float, seed: int) -> bool:
    """Whether the alarm rang: requested outcomes are all told, of the others nine wrong ones in ten, one right in ten."""
    chance = random.Random(seed)
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_rate=rate) as server:
        feedback = server.app.state.service.predictor().feedback
        for k in range(1500):
            prediction_id, wrong = f"pred_{seed}_{k}", chance.random() < risk
            feedback.predicted(CALIBRATED, prediction_id, "a", target_risk=0.05, predictive_entropy=None)
            if feedback.requested(prediction_id) or chance.random() < (0.9 if wrong else 0.1):
                await feedback.told(prediction_id, "b" if wrong else "a")
        assert await server.metric("blora_outcomes_total", **TARGET, requested="false", outcome="wrong") > 20
        return bool(await server.metric("blora_promise_broken", **TARGET))


async def test_complaints_do_not_ring_the_alarm_where_a_random_sample_is_told_in_full() -> None:
    kept = [await volunteered(risk=0.03, rate=0.2, seed=seed) for seed in range(20)]
    assert sum(kept) <= 1
    broken = [await volunteered(risk=0.15, rate=0.2, seed=seed) for seed in range(20)]
    assert sum(broken) >= 19


async def test_an_answer_says_whether_its_outcome_is_asked_for() -> None:
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_rate=0.3) as server:
        body = {"inputs": [{"prompt": "p=0.95"}] * 200}
        answers = (await server.client.post("/v1/predict", json=body)).json()["predictions"]
        requested = [answer["feedback_requested"] for answer in answers]
        assert 30 <= sum(requested) <= 90
        for answer in answers:
            assert (await tell(server, answer["id"], "billing")).json() == {"correct": True}
        for asked_for, count in (("true", sum(requested)), ("false", 200 - sum(requested))):
            assert await server.metric("blora_promised_answers_total", **TARGET, requested=asked_for) == count
            assert await server.metric("blora_outcomes_total", **TARGET, requested=asked_for) == count


async def test_outcomes_that_nobody_asked_for_are_no_evidence() -> None:
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_rate=0) as server:
        for _ in range(20):
            assert (await tell(server, (await ask(server))["id"], "sales")).json() == {"correct": False}
        assert await server.metric("blora_outcomes_total", **TARGET, requested="false", outcome="wrong") == 20
        assert "blora_promise_broken{" not in (await server.client.get("/metrics")).text


async def test_drift_shows_once_questions_change(watched: Running) -> None:
    assert "blora_uncertainty_drift{" not in (await watched.client.get("/metrics")).text
    chance = random.Random(0)
    feedback = watched.app.state.service.predictor().feedback

    async def drift(n: int, low: float, high: float) -> float:
        for k in range(n):
            entropy = chance.uniform(low, high)
            feedback.predicted(CALIBRATED, f"{low}{k}", "a", target_risk=None, predictive_entropy=entropy)
        return await watched.metric("blora_uncertainty_drift", adapter="triage")

    assert await drift(1000, 0.28, 0.32) < 0.1
    assert await drift(500, 0.7, 1.0) > 0.25


async def test_questions_unlike_those_of_the_calibration_are_no_drift(watched: Running) -> None:
    for _ in range(220):
        await ask(watched, seed=1, policy={"min_confidence": 0.5})
    assert "blora_uncertainty_drift{" not in (await watched.client.get("/metrics")).text
