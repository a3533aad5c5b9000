"""Reading of long bodies in one thread: clients take turns, and nobody waits beyond a deadline or after leaving."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from starlette.requests import Request
from starlette.types import Message

from blora.client.answers import Prediction
from blora.server.errors import DeadlineExceededError, DisconnectedError, QueueFullError
from blora.server.http import strict_json
from blora.server.http.reading import Reader, Reading
from blora.server.http.responses import batch_response
from blora.server.monitoring.build import Build
from blora.server.monitoring.metrics import ServerMetrics
from blora.server.schemas.responses import BatchResponse
from blora.server.settings import Settings
from tests.server import decision_models
from tests.server.fakes import FakeEngine, running
from tests.server.http.test_disconnect import Caller

T = TypeVar("T")
MIB = 2**20
LONG = "x" * 20_000
BATCH = {"inputs": [{"prompt": "x"}, {"prompt": "y"}]}
DECISIONS = {"model": "open", "input": "x", "questions": [decision_models.predicate()]}
SYSTEMONE = {"model": "open", "state": "x", "questions": {"a": {"type": "noul", "instructions": "Is it so?"}}}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/predict", BATCH),
    ("/v1/decisions", DECISIONS),
    ("/v1/systemone", SYSTEMONE),
]


async def stays() -> Message:
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def leaves() -> Message:
    return {"type": "http.disconnect"}


async def read(
    reader: Reader,
    client: str,
    work: Callable[[], T],
    *,
    n_bytes: int = MIB,
    receive: Any = stays,
    left_s: float = 60,
    first_step: bool = False,
) -> T:
    """Run a step of a client's request, which has some time left."""
    service = SimpleNamespace(settings=Settings(), metrics=ServerMetrics(Build.current()))
    app = SimpleNamespace(state=SimpleNamespace(reader=reader, service=service))
    request = Request({"type": "http", "app": app, "client": (client, 1)}, receive)
    reading = Reading(n_bytes, asyncio.get_running_loop().time() + left_s)
    return await reading.run(request, work, first_step=first_step)


def slow(content: bytes, max_body_bytes: int) -> Any:
    """Read a body as `parse` does, in 0.2 s."""
    time.sleep(0.2)
    return json.loads(content)


@asynccontextmanager
async def held(reader: Reader) -> AsyncIterator[None]:
    """Keep the reader's thread busy."""
    loop, begun, gate = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(60)

    holding = asyncio.create_task(reader.run(work, "somebody", 1, first_step=True))
    await begun.wait()
    try:
        yield
    finally:
        gate.set()
        await holding


async def begun(tasks: "list[asyncio.Task[None]]") -> "list[asyncio.Task[None]]":
    """Let the tasks run until each of them waits or has ended."""
    for _ in range(20):
        await asyncio.sleep(0)
    return tasks


async def test_forty_long_bodies_of_one_client_let_another_clients_go_second() -> None:
    reader, done = Reader(MIB), list[str]()
    async with held(reader):
        flood = [read(reader, "one", partial(done.append, "flood")) for _ in range(40)]
        tasks = await begun([asyncio.create_task(each) for each in flood])
        asked = read(reader, "other", partial(done.append, "asked"), n_bytes=20_000)
        tasks += await begun([asyncio.create_task(asked)])
    await asyncio.gather(*tasks)
    assert done.index("asked") == 1
    reader.close()


async def test_one_client_leaves_a_fifth_of_the_room_to_others() -> None:
    reader, done = Reader(MIB), list[str]()
    async with held(reader):
        flood = [read(reader, "one", partial(done.append, "flood"), first_step=True) for _ in range(200)]
        tasks = await begun([asyncio.create_task(each) for each in flood])
        refused = [task for task in tasks if task.done()]
        assert 140 < len(refused) < 150  # there is room for 64 bodies of the largest size
        asked = read(reader, "other", partial(done.append, "asked"), first_step=True)
        tasks += await begun([asyncio.create_task(asked)])
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, QueueFullError) for outcome in outcomes) == len(refused)
    assert "asked" in done
    reader.close()


@pytest.mark.parametrize(
    ("more", "error"), [({"left_s": -1}, DeadlineExceededError), ({"receive": leaves}, DisconnectedError)]
)
async def test_who_is_late_or_has_left_is_not_read(more: dict[str, Any], error: type[Exception]) -> None:
    reader, done = Reader(MIB), list[str]()
    async with held(reader):
        with pytest.raises(error):
            await read(reader, "one", partial(done.append, "read"), **more)
    await read(reader, "one", partial(done.append, "next"))
    assert done == ["next"]
    reader.close()


async def test_a_short_body_is_read_at_once_and_a_long_one_in_the_thread() -> None:
    reader = Reader(MIB)
    names = [await read(reader, "one", lambda: threading.current_thread().name, n_bytes=n) for n in (300, MIB)]
    assert [name.startswith("read") for name in names] == [False, True]
    reader.close()


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_short_requests_do_not_wait_for_the_thread(path: str, body: dict[str, Any]) -> None:
    async with running(decision_models.engine()) as server, held(server.app.state.reader):
        assert (await server.client.post(path, json=body)).status_code == 200


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_a_long_request_waits_until_its_deadline_at_most(path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body) + " " * 20_000
    async with running(decision_models.engine(), timeout_s=0.1) as server, held(server.app.state.reader):
        response = await server.client.post(path, content=content, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert await server.metric("blora_requests_total", adapter="unknown", outcome="deadline_exceeded") == 1
        assert await server.metric("blora_request_seconds_count") == 1
        assert 0.09 < await server.metric("blora_request_seconds_sum") < 10


@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_the_time_of_each_input_begins_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(strict_json, "parse", slow)
    content = json.dumps(body) + " " * 20_000
    async with running(decision_models.engine()) as server:
        response = await server.client.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 200
        n_inputs = await server.metric("blora_requests_total")
        assert await server.metric("blora_request_seconds_count") == n_inputs > 0
        assert 0.19 * n_inputs < await server.metric("blora_request_seconds_sum") < 10 * n_inputs


async def test_the_long_answer_to_a_short_batch_is_written_in_the_thread_after_the_deadline_too() -> None:
    body = {"inputs": [{"prompt": "x", "n_samples": 64}] * 8, "return_samples": True}
    async with running(FakeEngine(), timeout_s=0.5) as server:
        async with held(server.app.state.reader):
            asking = asyncio.create_task(server.client.post("/v1/predict", json=body))
            assert not (await asyncio.wait({asking}, timeout=1))[0]
        found = (await asking).json()["predictions"]
    assert [len(one["samples"]) for one in found] == [64] * 8


@pytest.mark.parametrize(("path", "body"), ASKED[1:])
async def test_answers_that_are_there_before_the_deadline_are_written_after_it_too(
    path: str, body: dict[str, Any]
) -> None:
    content, engine = json.dumps(body) + " " * 20_000, decision_models.engine()
    async with running(engine, timeout_s=0.5) as server:
        engine.gate.clear()
        posted = server.client.post(path, content=content, headers={"content-type": "application/json"})
        asking = asyncio.create_task(posted)
        await engine.computing.wait()
        async with held(server.app.state.reader):
            engine.gate.set()
            assert not (await asyncio.wait({asking}, timeout=1))[0]
        assert (await asking).status_code == 200


async def test_the_event_loop_runs_between_the_answers_of_a_batch_that_are_written_in_the_thread() -> None:
    body = {"prompt": "x", "adapter": "open", "choices": [str(k) for k in range(255)], "n_samples": 64}
    async with running(FakeEngine()) as server:
        answer = (await server.client.post("/v1/predict", json=body | {"return_samples": True})).json()
    outcomes = [Prediction.model_validate(answer)] * 64
    reader, turns = Reader(MIB), [time.perf_counter()]
    writing = asyncio.create_task(read(reader, "one", partial(batch_response, outcomes)))
    while not writing.done():
        await asyncio.sleep(0)
        turns.append(time.perf_counter())
    assert max(later - turn for turn, later in pairwise(turns)) < (turns[-1] - turns[0]) / 2
    assert (await writing).body == BatchResponse(predictions=outcomes).model_dump_json(exclude_unset=True).encode()
    reader.close()


@pytest.mark.parametrize("body", [{"inputs": [{"prompt": "x"}]}, {"prompt": "x"}])
async def test_the_deadline_counts_from_before_the_reading(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(strict_json, "parse", slow)
    engine = FakeEngine()
    async with running(engine, timeout_s=0.1) as server:
        engine.batches.clear()
        response = await server.client.post("/v1/predict", json=body)
        assert '"code":"deadline_exceeded"' in response.text
    assert engine.batches == []


async def test_the_long_body_of_a_client_that_left_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def parse(content: bytes, max_body_bytes: int) -> Any:
        parsed.append(len(content))
        return json.loads(content)

    monkeypatch.setattr(strict_json, "parse", parse)
    async with running(FakeEngine()) as server:
        async with held(server.app.state.reader):
            leaving = Caller(server, {"prompt": LONG})
            await begun([leaving.call])
            leaving.hang_up()
            await leaving.call
        assert (await server.client.post("/v1/predict", json={"prompt": "x"})).status_code == 200
    assert len(parsed) == 1


@pytest.mark.parametrize("path", ["/v1/decisions", "/v1/systemone"])
async def test_an_unknown_model_is_told_before_the_questions_are_read(path: str) -> None:
    text = {"/v1/decisions": "input", "/v1/systemone": "state"}[path]
    questions: Any = [{"type": "nonsense"}] if text == "input" else {"a": {"type": "nonsense"}}
    async with running(decision_models.engine()) as server:
        response = await server.client.post(path, json={"model": "nobody", text: "x", "questions": questions})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "unknown_adapter", "model")
