"""Runs of the vLLM engine that give way or are called off in part, and a vLLM that is away or hangs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from blora.server.app import create_app
from blora.server.engines.protocol import EngineUnavailableError, Job
from blora.server.engines.vllm_engine import VllmEngine
from blora.server.scheduling.control import AbandonedError, Control, UnavailableError
from tests.server.engines.asking import CHOICES, settings
from tests.server.engines.fake_vllm import FakeVllm, fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's


@pytest.fixture
async def vllm(folder: Path) -> AsyncIterator[FakeVllm]:
    async with fake_vllm(folder / "tiny") as fake:
        yield fake


@pytest.fixture
async def engine(folder: Path, vllm: FakeVllm, tmp_path: Path) -> AsyncIterator[VllmEngine]:
    made = VllmEngine(chosen(folder, vllm, tmp_path, timeout_s=2.0, engine_concurrency=2))
    yield made
    await made.close()


def chosen(folder: Path, fake: FakeVllm, tmp_path: Path, **more: Any) -> Any:
    return settings(folder, "one", engine="vllm", engine_url=fake.url, engine_folder=tmp_path / "draws", **more)


async def job(engine: VllmEngine, handle: Any, question: str) -> Job:
    row = await engine.pack(handle, prompt=question, messages=None, choices=CHOICES, scoring=None)
    return Job(handle, row, 4, None, None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_run_gives_way_between_two_requests_and_then_ends(engine: VllmEngine, vllm: FakeVllm) -> None:
    [handle] = (await engine.load()).adapters
    parked, before = asyncio.Event(), vllm.asked
    control = Control(parked=parked.set)
    long = asyncio.create_task(engine.run([await job(engine, handle, "why")], control))
    await until(lambda: vllm.asked > before)
    control.park()
    await asyncio.wait_for(parked.wait(), 5)
    asked = vllm.asked
    assert asked - before < 4 * len(CHOICES)
    [other] = await engine.run([await job(engine, handle, "another")])
    assert len(other.probs) == 4
    assert vllm.asked - asked == 4 * len(CHOICES)
    assert not long.done()
    control.go_on()
    [found] = await long
    assert len(found.probs) == 4
    assert vllm.asked - before == 8 * len(CHOICES)


async def test_a_parked_run_that_nobody_wants_any_more_ends_once_it_has_its_turn(
    engine: VllmEngine, vllm: FakeVllm
) -> None:
    [handle] = (await engine.load()).adapters
    parked, left = asyncio.Event(), asyncio.Event()
    control = Control(lambda payload: not left.is_set(), parked.set)
    control.park()
    asked = vllm.asked
    running = asyncio.create_task(engine.run([await job(engine, handle, "why")], control))
    await asyncio.wait_for(parked.wait(), 5)
    left.set()
    control.go_on()
    with pytest.raises(AbandonedError):
        await asyncio.wait_for(running, 5)
    assert vllm.asked == asked


async def test_a_question_that_nobody_waits_for_is_dropped_and_the_others_are_answered(
    engine: VllmEngine, vllm: FakeVllm
) -> None:
    [handle] = (await engine.load()).adapters
    gone, wanted = [await job(engine, handle, question) for question in ("gone", "wanted")]
    dropped: list[object] = []
    asked = vllm.asked
    control = Control(lambda payload: payload is not gone, dropped=dropped.append)
    _, found = await engine.run([gone, wanted], control)
    assert dropped == [gone]
    assert len(found.probs) == 4
    assert vllm.asked - asked == 4 * len(CHOICES)


async def test_questions_while_vllm_is_away_are_told_to_try_again_and_the_log_says_so_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as up:
        async with fake_vllm(folder / "tiny") as vllm:
            app = create_app(chosen(folder, vllm, tmp_path))
            await up.enter_async_context(app.router.lifespan_context(app))
            await app.state.service.settled.wait()
        client = await up.enter_async_context(httpx.AsyncClient(transport=httpx.ASGITransport(app)))
        caplog.clear()

        app.state.service._batcher.last_forward_failed = True  # of a pass that failed before vLLM was away

        async def ask() -> httpx.Response:
            return await client.post("http://t/v1/predict", json={"prompt": "why"})

        for answer in [*await asyncio.gather(*(ask() for _ in range(4))), await ask()]:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unreachable")
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "vLLM at" in record.message
        assert "Traceback" not in caplog.text
        ready = await client.get("http://t/readyz")
        assert ready.status_code == 503
        assert "cannot be reached" in ready.json()["error"]["message"]
        assert "Traceback" not in caplog.text
        async with fake_vllm(folder / "tiny", vllm.port):
            assert (await client.get("http://t/readyz")).status_code == 200
            assert (await ask()).status_code == 200


async def test_a_vllm_that_answers_nothing_for_long_is_taken_for_unavailable(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [handle] = (await engine.load()).adapters
    await engine.run([await job(engine, handle, "why")])

    async def never(*args: Any, **more: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(engine._vllm._http, "send", never)
    for expected in (AbandonedError, UnavailableError):  # of two clients that leave before they are answered
        left = asyncio.Event()
        control = Control(lambda payload, left=left: not left.is_set())  # type: ignore[misc]
        running = asyncio.create_task(engine.run([await job(engine, handle, "why")], control))
        await asyncio.sleep(0.7)  # of the two seconds that an answer may take
        left.set()
        with pytest.raises(expected):
            await asyncio.wait_for(running, 5)


async def test_a_run_that_computes_its_last_answer_gives_it_though_it_is_to_give_way(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [handle] = (await engine.load()).adapters
    control = Control()
    proving = engine._prove_if_new

    async def parked_meanwhile(handle: Any) -> None:
        control.park()
        await asyncio.sleep(0.2)
        await proving(handle)

    monkeypatch.setattr(engine, "_prove_if_new", parked_meanwhile)
    [found] = await asyncio.wait_for(engine.run([await job(engine, handle, "why")], control), 5)
    assert len(found.probs) == 4


@pytest.mark.parametrize("scoring", ["text", "label"])
async def test_a_run_gives_way_after_the_requests_that_vllm_has(
    engine: VllmEngine, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch, scoring: str
) -> None:
    """Choices of several tokens are asked for one by one, others two at a time."""
    [handle] = (await engine.load()).adapters
    row = await engine.pack(handle, prompt="why", messages=None, choices=CHOICES, scoring=scoring)
    parked, asked = asyncio.Event(), vllm.asked
    control = Control(parked=parked.set)
    long = asyncio.create_task(engine.run([Job(handle, row, 4, None, None)] * 3, control))
    await until(lambda: vllm.asked > asked)
    control.park()
    await asyncio.wait_for(parked.wait(), 5)
    assert vllm.asked - asked <= 3
    control.go_on()
    assert [len(found.probs) for found in await long] == [4, 4, 4]


async def test_a_vllm_that_starts_or_ends_is_taken_for_unavailable(
    engine: VllmEngine, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    [handle] = (await engine.load()).adapters

    async def busy(*args: Any, **more: Any) -> httpx.Response:
        return httpx.Response(503, text="starting")

    monkeypatch.setattr(engine._vllm._http, "send", busy)
    with pytest.raises(UnavailableError, match="503 'starting'"):
        await engine.run([await job(engine, handle, "why")])
    with pytest.raises(UnavailableError):
        await engine.probe()


async def test_a_lora_that_cannot_be_loaded_yet_leaves_vllm_unavailable(
    folder: Path, engine: VllmEngine, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    [handle] = (await engine.load()).adapters
    vllm.loras.clear()  # as after a restart
    send = engine._vllm._http.send

    async def starting(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, text="starting") if "load_lora" in request.url.path else await send(request)

    monkeypatch.setattr(engine._vllm._http, "send", starting)
    with pytest.raises(UnavailableError, match="503 'starting'"):
        await engine.run([await job(engine, handle, "why")])
    with pytest.raises(EngineUnavailableError, match="503 'starting'"):
        await engine.load_adapter(folder / "two", "two")


async def test_an_answer_that_outlives_its_adapter_harms_nobody(engine: VllmEngine, vllm: FakeVllm) -> None:
    [handle] = (await engine.load()).adapters
    await engine.forget(handle)
    await until(lambda: not vllm.loras)
    [found] = await engine.run([await job(engine, handle, "why")])
    assert len(found.probs) == 4
