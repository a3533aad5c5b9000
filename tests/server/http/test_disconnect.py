"""Clients that disconnect."""

import asyncio
import json
from collections.abc import Sequence

import pytest
from starlette.requests import Request
from starlette.types import Message

from blora.server.engines.protocol import Job, Outcome
from blora.server.errors import DisconnectedError
from blora.server.http.disconnect import unless_disconnected
from blora.server.scheduling.control import Control
from blora.server.schemas.requests import PredictRequest
from tests.server.decision_models import choice
from tests.server.fakes import CHOICES, TRIAGE_DIGEST, FakeEngine, Running, handle, running


class Caller:
    """A client on the bare ASGI interface that can hang up."""

    def __init__(self, server: Running, body: object, path: str = "/v1/predict") -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self.call = asyncio.create_task(server.app(scope, self._messages.get, self._send))
        self.status: int | None = None

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]

    def hang_up(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})


async def until_depth(server: Running, depth: int) -> None:
    async with asyncio.timeout(5):
        while await server.metric("blora_queue_depth") != depth:
            await asyncio.sleep(0)


async def test_work_for_a_client_that_left_is_dropped_before_compute(server: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    staying = Caller(server, {"prompt": "staying"})
    await engine.computing.wait()
    leaving = Caller(server, {"prompt": "leaving"})
    await until_depth(server, 1)
    leaving.hang_up()
    await leaving.call
    engine.gate.set()
    await staying.call
    assert staying.status == 200
    assert engine.batches == [["staying"]]
    assert await server.metric("blora_requests_total", adapter="triage", outcome="disconnected") == 1
    assert await server.metric("blora_requests_total", adapter="unknown", outcome="disconnected") == 0
    assert await server.metric("blora_dropped_total", reason="cancelled") == 1


async def test_every_input_of_a_batch_is_dropped(server: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    staying = Caller(server, {"prompt": "staying"})
    await engine.computing.wait()
    leaving = Caller(server, {"inputs": [{"prompt": f"leaving {i}"} for i in range(5)]})
    await until_depth(server, 5)
    leaving.hang_up()
    await leaving.call
    engine.gate.set()
    await staying.call
    assert engine.batches == [["staying"]]
    assert await server.metric("blora_dropped_total", reason="cancelled") == 5


async def test_each_typed_question_of_a_client_that_left_counts_as_disconnected() -> None:
    questions = [choice(*CHOICES, name="queue"), choice("a", "b")]
    engine = FakeEngine(handles=(handle("triage", TRIAGE_DIGEST),))
    engine.gate.clear()
    async with running(engine) as server:
        leaving = Caller(server, {"model": "triage", "input": "x", "questions": questions}, "/v1/decisions")
        await engine.computing.wait()
        leaving.hang_up()
        await leaving.call
        engine.gate.set()
        assert await server.metric("blora_requests_total", adapter="triage", outcome="disconnected") == len(questions)
        assert await server.metric("blora_requests_total", outcome="sibling_failed") == 0


async def test_answers_that_a_client_did_not_wait_for_count_as_disconnected() -> None:
    class Slower(FakeEngine):
        """An engine that ends no pass after the first 32 questions."""

        async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
            if sum(map(len, self.batches)) >= 32:
                self.gate.clear()
                self.late.set()
            return await super().run(jobs, control)

        late = asyncio.Event()

    engine = Slower(handles=(handle("open", TRIAGE_DIGEST),))
    questions = [choice("a", "b", instructions=f"{number}?") for number in range(40)]
    async with running(engine, default_adapter="open") as server:
        leaving = Caller(server, {"model": "open", "input": "x", "questions": questions}, "/v1/decisions")
        await engine.late.wait()
        leaving.hang_up()
        await leaving.call
        engine.gate.set()
        assert await server.metric("blora_requests_total", adapter="open", outcome="disconnected") == 40
        assert await server.metric("blora_requests_total", adapter="open") == 40


async def test_a_cancelled_question_ends_as_cancelled_and_not_with_an_answer(
    server: Running, engine: FakeEngine
) -> None:
    engine.gate.clear()
    question = PredictRequest(prompt="x", adapter="triage")
    asked = asyncio.create_task(server.app.state.service.predictor().predict(question))
    await engine.computing.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    engine.gate.set()


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(engine: FakeEngine) -> None:
    async with running(engine) as server:
        caller = Caller(server, {})
        caller._messages.get_nowait()
        caller._messages.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        caller.hang_up()
        await caller.call
        assert caller.status is None


async def test_work_that_ends_first_wins_and_the_watcher_is_gone() -> None:
    never = asyncio.Event()

    async def receive() -> Message:
        await never.wait()
        return {"type": "http.disconnect"}

    async def work() -> int:
        return 3

    request = Request({"type": "http"}, receive)
    assert await unless_disconnected(request, work()) == 3
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_error_of_the_work_is_the_callers() -> None:
    async def receive() -> Message:
        await asyncio.sleep(10)
        return {"type": "http.disconnect"}

    async def work() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await unless_disconnected(Request({"type": "http"}, receive), work())


async def test_a_client_that_has_left_already_gets_nothing() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled = True
            raise

    with pytest.raises(DisconnectedError):
        await unless_disconnected(Request({"type": "http"}, receive), work())
    assert cancelled
