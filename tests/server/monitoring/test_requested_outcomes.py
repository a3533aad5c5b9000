"""Which outcomes are requested and held against the promise: one for each text, whatever was answered."""

import random
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from blora.server.monitoring import recent_texts
from tests.server.calibrations import calibration
from tests.server.decision_models import predicate
from tests.server.fakes import OPEN_DIGEST, FakeEngine, Running, handle, running
from tests.server.monitoring.test_feedback import CALIBRATED, SURE, TARGET, ask, predicted, tell


@pytest.fixture
async def watched() -> AsyncIterator[Running]:
    async with running(FakeEngine(handles=(CALIBRATED,))) as server:
        yield server


async def volunteered(risk: float, rate: float, seed: int) -> bool:
    """Return whether the alarm fired, with all requested outcomes and of the others 90 % of wrong and 10 % of right ones."""
    chance = random.Random(seed)
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_rate=rate) as server:
        feedback = server.app.state.service.predictor().feedback
        for k in range(1500):
            prediction_id, wrong = f"pred_{seed}_{k}", chance.random() < risk
            if predicted(feedback, prediction_id) or chance.random() < (0.9 if wrong else 0.1):
                await feedback.told(prediction_id, "b" if wrong else "a", None)
        assert await server.metric("blora_outcomes_total", **TARGET, requested="false", outcome="wrong") > 20
        return bool(await server.metric("blora_promise_broken", **TARGET))


async def test_complaints_do_not_ring_the_alarm_where_a_random_sample_is_told_in_full() -> None:
    kept = [await volunteered(risk=0.03, rate=0.2, seed=seed) for seed in range(20)]
    assert sum(kept) <= 1
    broken = [await volunteered(risk=0.15, rate=0.2, seed=seed) for seed in range(20)]
    assert sum(broken) >= 19


async def test_an_answer_says_whether_its_outcome_is_asked_for() -> None:
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_rate=0.3) as server:
        body = {"inputs": [{"prompt": next(SURE)} for _ in range(200)]}
        answers = (await server.client.post("/v1/predict", json=body)).json()["predictions"]
        requested = [answer["feedback_requested"] for answer in answers]
        assert 30 <= sum(requested) <= 90
        for answer in answers:
            assert (await tell(server, answer["id"], "billing")).json() == {"correct": True}
        for asked_for, count in (("true", sum(requested)), ("false", 200 - sum(requested))):
            assert await server.metric("blora_promised_answers_total", **TARGET, requested=asked_for) == count
            assert await server.metric("blora_outcomes_total", **TARGET, requested=asked_for) == count


async def test_of_answers_about_one_text_the_outcome_that_counts_is_asked_for() -> None:
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_rate=1 - 1e-9) as server:
        answers = [await ask(server, "p=0.95 the same") for _ in range(40)]
        assert sum(answer["feedback_requested"] for answer in answers) == 1
        for answer in answers:
            await tell(server, answer["id"], "billing" if answer["feedback_requested"] else "account")
        assert await server.metric("blora_outcomes_total", **TARGET, requested="true", outcome="correct") == 1
        assert await server.metric("blora_outcomes_total", **TARGET, requested="false", outcome="wrong") == 39


async def test_of_a_requests_questions_the_outcome_of_one_drawn_at_random_is_asked_for() -> None:
    opened = handle("open", OPEN_DIGEST, calibration=calibration(OPEN_DIGEST))
    counted, places = {"adapter": "open", "target_risk": "0.05", "requested": "true"}, set()
    async with running(FakeEngine(handles=(opened,)), default_adapter="open", feedback_rate=1 - 1e-9) as server:
        for _ in range(40):
            body = {"model": "open", "input": next(SURE), "questions": [predicate()] * 3}
            answers = (await server.client.post("/v1/decisions", json=body)).json()["answers"]
            [place] = [place for place, answer in enumerate(answers) if answer["feedback_requested"]]
            places.add(place)
            for answer in answers:
                await tell(server, answer["id"], "true" if answer is answers[place] else "false")
        outcomes = [
            await server.metric("blora_outcomes_total", **counted, outcome=each) for each in ("correct", "wrong")
        ]
        assert sorted(outcomes) == [0, 40]
    assert places == {0, 1, 2}


async def test_a_text_is_recognised_only_for_what_counts_it(watched: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    recognised: list[str] = []
    monkeypatch.setattr(recent_texts, "plain", lambda text: recognised.append(text) or text)
    await ask(watched, "p=0.95 a text", policy={"min_confidence": 0.5})  # without a promise, and without a gate
    assert recognised == []
    await ask(watched, "p=0.95 a text")
    assert recognised == ["p=0.95 a text"]


async def test_a_text_is_in_the_sample_or_not_however_often_it_is_asked_about() -> None:
    """With a draw for each answer, a text with many would be in the sample nearly always."""
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_rate=0.2) as server:
        feedback = server.app.state.service.predictor().feedback
        requested = [
            sum(predicted(feedback, f"pred_{text}_{k}", f"text {text}") for k in range(20)) for text in range(300)
        ]
    assert set(requested) == {0, 1}
    assert 30 <= sum(requested) <= 95  # 60 are expected, with a standard deviation of 7


async def test_a_withheld_answer_stands_for_its_text_as_in_a_calibration(watched: Running) -> None:
    """Half of the texts are hard: one of four questions is answered, and wrong for 12 %; the easy ones are for 2 %.

    The first answer about each text, in place of the first question, would give the hard texts too much weight.
    """
    feedback = watched.app.state.service.predictor().feedback
    given, wrong = 0, 0
    for text in range(1500):
        hard, number = text % 2 == 0, text // 2
        fails = number % 25 > 21 if hard else number % 50 == 49
        for k in range(4):
            answered = not hard or number % 4 == k
            assert predicted(feedback, f"pred_{text}_{k}", f"text {text}", answered=answered) == (k == 0)
            await feedback.told(f"pred_{text}_{k}", "b" if fails else "a", None)
            if k == 0 and answered:
                given, wrong = given + 1, wrong + fails
    assert await watched.metric("blora_promised_answers_total", **TARGET, requested="true") == given
    assert await watched.metric("blora_realised_risk", **TARGET) == pytest.approx(wrong / given)
    assert wrong / given < 0.05  # it would be 0.07
    assert await watched.metric("blora_promise_broken", **TARGET) == 0


async def test_of_a_requests_questions_one_that_is_withheld_may_be_drawn() -> None:
    opened = handle("open", OPEN_DIGEST, calibration=calibration(OPEN_DIGEST))
    inputs = [{"prompt": "p=0.95 one", "choices": ["x", "y"]}, {"prompt": "p=0.95 one", "choices": ["x", "y", "z"]}]
    async with running(FakeEngine(handles=(opened,)), default_adapter="open") as server:
        feedback = server.app.state.service.predictor().feedback
        record, withheld = feedback.predicted, count()

        def withholding(*args: Any, **named: Any) -> bool:
            return bool(record(*args, **named | {"answered": next(withheld) % 2 == 1}))

        feedback.predicted = withholding
        assert (await server.client.post("/v1/predict", json={"inputs": inputs})).status_code == 200
        assert await server.metric("blora_promised_answers_total", requested="true") == 0
        assert await server.metric("blora_promised_answers_total", requested="false") == 1


async def test_outcomes_that_nobody_asked_for_are_no_evidence() -> None:
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_rate=0) as server:
        for _ in range(20):
            assert (await tell(server, (await ask(server))["id"], "account")).json() == {"correct": False}
        assert await server.metric("blora_outcomes_total", **TARGET, requested="false", outcome="wrong") == 20
        assert "blora_promise_broken{" not in (await server.client.get("/metrics")).text
