"""Answers to one request: other work is done between two of them, and none is recorded before all are there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from blora.server.engines.handle import AdapterHandle
from blora.server.errors import DisconnectedError, ServerError
from blora.server.prediction import predictor
from blora.server.prediction.decisions import answering
from blora.server.prediction.siblings import Made, Siblings, siblings_of_a_request
from tests.server.calibrations import calibration
from tests.server.decision_models import LEVELS, choice, score
from tests.server.decision_models import engine as typed
from tests.server.fakes import CHOICES, TRIAGE_DIGEST, FakeEngine, Running, handle, running
from tests.server.http.test_disconnect import Caller

N_ANSWERS = 50
PROMISED = handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST))


@asynccontextmanager
async def turns_of_others() -> AsyncIterator[Callable[[], int]]:
    """Yield a function that returns how often the event loop has done other work."""
    n_turns = 0

    async def take_turns() -> None:
        nonlocal n_turns
        while True:
            n_turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    try:
        yield lambda: n_turns
    finally:
        others.cancel()


async def test_answers_that_one_pass_wakes_let_other_work_in_between() -> None:
    siblings, passed, seen = Siblings(), asyncio.Event(), list[int]()

    async def answer() -> None:
        await passed.wait()
        await siblings.turn()
        seen.append(turns())

    async with turns_of_others() as turns:
        answering = [asyncio.create_task(answer()) for _ in range(N_ANSWERS)]
        await asyncio.sleep(0)
        passed.set()
        await asyncio.gather(*answering)
    assert len(set(seen)) == N_ANSWERS


async def test_an_answer_that_is_given_up_keeps_no_other_from_its_turn() -> None:
    siblings = Siblings()
    waiting = [asyncio.create_task(siblings.turn()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    async with asyncio.timeout(5):
        await waiting[2]


def not_given(error: ServerError | None) -> None:
    pytest.fail(f"an answer was discarded because of {error}")


async def test_records_let_other_work_in_between_and_say_what_is_requested() -> None:
    siblings, seen = Siblings(), list[int]()

    def record(number: int) -> bool:
        seen.append(turns())
        return number % 2 == 0

    for number in range(N_ANSWERS):
        siblings.add(f"pred_{number}", Made(partial(record, number), not_given))
    async with turns_of_others() as turns:
        requested = await siblings.record()
    assert requested == {f"pred_{number}": number % 2 == 0 for number in range(N_ANSWERS)}
    assert len(set(seen)) == N_ANSWERS


async def test_the_answer_that_was_there_first_is_not_always_recorded_first() -> None:
    firsts = set()
    for _ in range(64):
        siblings = Siblings()
        for name in ("early", "late"):
            siblings.add(name, Made(lambda: True, not_given))
        firsts.add(next(iter(await siblings.record())))
    assert firsts == {"early", "late"}


async def test_answers_that_are_not_recorded_in_the_end_are_discarded_once() -> None:
    discarded: list[ServerError | None] = []
    with siblings_of_a_request() as siblings:
        siblings.add("pred", Made(lambda: True, discarded.append))
    assert discarded == [None]
    with siblings_of_a_request() as siblings:
        siblings.add("pred", Made(lambda: True, discarded.append))
        await siblings.record()
    assert discarded == [None]

    def leave() -> None:
        with siblings_of_a_request() as siblings:
            siblings.add("pred", Made(lambda: True, discarded.append))
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        leave()
    assert [type(error) for error in discarded] == [type(None), DisconnectedError]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/predict", {"inputs": [{"prompt": "x", "adapter": "triage"}] * N_ANSWERS}),
        (
            "/v1/decisions",
            {"model": "triage", "input": "x", "questions": [choice(*CHOICES, name="queue")] * N_ANSWERS},
        ),
    ],
)
async def test_other_requests_get_a_turn_between_two_answers_of_a_request(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    seen, answered = list[int](), predictor.answered

    def counting(*args: Any, **named: Any) -> Any:
        seen.append(turns())
        return answered(*args, **named)

    monkeypatch.setattr(predictor, "answered", counting)
    async with running(typed()) as server, turns_of_others() as turns:
        assert (await server.client.post(path, json=body)).status_code == 200
    assert len(set(seen)) == N_ANSWERS


async def test_other_requests_get_a_turn_between_the_spreads_of_two_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, level_std = list[int](), answering.level_std

    def counting(*args: Any) -> float:
        seen.append(turns())
        return level_std(*args)

    monkeypatch.setattr(answering, "level_std", counting)
    body = {"model": "triage", "input": "x", "questions": [score(*LEVELS, name="mood")] * N_ANSWERS}
    async with running(typed()) as server, turns_of_others() as turns:
        assert (await server.client.post("/v1/decisions", json=body)).status_code == 200
    assert len(set(seen)) == N_ANSWERS


async def promised(server: Running) -> list[float]:
    """Return the numbers of answers under the promise whose outcome is requested, and whose outcome is not."""
    return [await server.metric("blora_promised_answers_total", requested=requested) for requested in ("true", "false")]


async def test_a_batch_that_nobody_got_waits_for_no_outcome_and_takes_no_place_of_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, answered = list[Any](), predictor.answered

    def answering_and_telling(*args: Any, **named: Any) -> Any:
        made.append(answered(*args, **named))
        return made[-1]

    batch = {"inputs": [{"prompt": "p=0.95 one"}, {"prompt": "p=0.95 two"}]}
    engine = FakeEngine(handles=(PROMISED,))
    async with running(engine, max_batch_tokens=8) as server:  # so that each input is a pass of its own
        ends: list[asyncio.Event] = [asyncio.Event(), asyncio.Event()]
        real, gates = engine.run, iter(ends)

        async def run(*args: Any) -> Any:
            await next(gates).wait()
            return await real(*args)

        server.app.state.service._batcher._run = run
        monkeypatch.setattr(predictor, "answered", answering_and_telling)
        leaving = Caller(server, batch)
        ends[0].set()
        async with asyncio.timeout(5):
            while not made:
                await asyncio.sleep(0)
        leaving.hang_up()
        await leaving.call
        ends[1].set()
        assert await promised(server) == [0, 0]
        assert await server.metric("blora_requests_total", adapter="triage", outcome="disconnected") == 2
        assert await server.metric("blora_requests_total", adapter="triage", outcome="answered") == 0
        assert await server.metric("blora_request_seconds_count") == 2
        server.app.state.service._batcher._run = real
        await server.client.post("/v1/predict", json=batch)
        assert await promised(server) == [2, 0]


async def test_an_answer_that_cannot_be_recorded_counts_as_an_error_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [choice(*CHOICES, name="queue")] * 3
    async with running(typed()) as server:
        feedback = server.app.state.service.predictor().feedback
        real, calls = feedback.predicted, list[str]()

        def failing(_: AdapterHandle, prediction_id: str, *rest: Any, **named: Any) -> Any:
            calls.append(prediction_id)
            if len(calls) % 2 == 0:
                raise RuntimeError("no room")
            return real(_, prediction_id, *rest, **named)

        monkeypatch.setattr(feedback, "predicted", failing)
        body = {"model": "triage", "input": "x", "questions": questions}
        assert (await server.client.post("/v1/decisions", json=body)).status_code == 500
        counts = [
            await server.metric("blora_requests_total", adapter="triage", outcome=outcome)
            for outcome in ("answered", "internal_error", "sibling_failed")
        ]
        assert counts == [1, 2, 0]
        for status, answered, failed in ((200, 2, 2), (500, 2, 3)):
            alone = await server.client.post("/v1/predict", json={"prompt": "x", "adapter": "triage"})
            assert alone.status_code == status
            assert await server.metric("blora_requests_total", adapter="triage", outcome="answered") == answered
            assert await server.metric("blora_requests_total", adapter="triage", outcome="internal_error") == failed


async def test_of_several_inputs_about_one_text_the_outcome_of_one_is_requested() -> None:
    inputs = [{"prompt": "p=0.95 one"}, {"prompt": "p=0.95  one"}, {"prompt": "p=0.1 one"}]
    async with running(FakeEngine(handles=(PROMISED,)), feedback_rate=0.999999) as server:
        response = await server.client.post("/v1/predict", json={"inputs": inputs})
        first, second, other = (answer["feedback_requested"] for answer in response.json()["predictions"])
        assert first != second
        assert other
        assert await promised(server) == [1, 1]
