"""Graceful shutdown with real sockets: no accepted request is lost."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from blora.server.app import create_app
from blora.server.commands.shutdown import DrainingServer
from blora.server.prediction.service import Service
from blora.server.settings import Settings
from tests.server.fakes import FakeEngine


@dataclass
class Listening:
    """A server on a free port, and a client that keeps no connection."""

    server: DrainingServer
    serving: asyncio.Task[None]
    client: httpx.AsyncClient
    service: Service

    def ask(self, prompt: str) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.client.post("/v1/predict", json={"prompt": prompt}))

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.server.handle_exit(number, None)


@asynccontextmanager
async def listening(engine: FakeEngine, **settings: Any) -> AsyncIterator[Listening]:
    app = create_app(Settings(default_adapter="triage", **settings), engine)
    service: Service = app.state.service
    server = DrainingServer(uvicorn.Config(app, log_config=None, lifespan="on"), service)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=10) as client:
            await service.settled.wait()
            while not server.started:
                await asyncio.sleep(0.01)
            yield Listening(server, serving, client, service)
        engine.gate.set()
        server.stop()
        async with asyncio.timeout(10):
            await serving


async def queued(up: Listening, depth: int) -> None:
    """Wait until a number of inputs are queued behind the one that is computed."""
    async with asyncio.timeout(5):
        while f"blora_queue_depth {depth}.0" not in up.service.metrics.render().decode():
            await asyncio.sleep(0.01)


async def test_everything_accepted_is_answered(engine: FakeEngine) -> None:
    async with listening(engine) as up:
        engine.gate.clear()
        questions = [up.ask("computing")]
        await engine.computing.wait()
        questions += [up.ask(f"waiting {i}") for i in range(20)]
        await queued(up, 20)
        up.signal()
        await asyncio.sleep(0.5)  # by now the listener is closed
        with pytest.raises(httpx.ConnectError):
            await up.client.get("/livez")
        engine.gate.set()
        responses = await asyncio.gather(*questions)
        assert [response.status_code for response in responses] == [200] * 21
        await up.serving


async def test_until_the_delay_ends_requests_are_served_and_readyz_says_no(engine: FakeEngine) -> None:
    async with listening(engine, drain_delay_s=0.5) as up:
        up.signal()
        ready = await up.client.get("/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
        assert ready.headers["connection"] == "close"
        assert (await up.ask("during the delay")).status_code == 200
        assert not up.serving.done()
        async with asyncio.timeout(5):
            await up.serving


async def test_a_question_that_is_not_read_when_the_engine_is_closed_is_told_to_ask_another_replica(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closed(*_: Any, **__: Any) -> Any:
        raise RuntimeError("cannot schedule new futures after shutdown")

    async with listening(engine) as up:
        monkeypatch.setattr(engine, "pack", closed)
        up.service._batcher.stop_admitting()
        told = await up.ask("late")
        assert (told.status_code, told.json()["error"]["code"]) == (503, "draining")


async def test_the_keyboard_does_not_wait_for_load_balancers(engine: FakeEngine) -> None:
    async with listening(engine, drain_delay_s=60) as up:
        up.signal(signal.SIGINT)
        async with asyncio.timeout(5):
            await up.serving


async def test_after_the_timeout_what_is_left_gets_503(engine: FakeEngine) -> None:
    async with listening(engine, drain_timeout_s=0.2) as up:
        engine.gate.clear()
        questions = [up.ask("computing")]
        await engine.computing.wait()
        questions.append(up.ask("waiting"))
        await queued(up, 1)
        up.signal()
        async with asyncio.timeout(5):
            for response in await asyncio.gather(*questions):
                assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
            await up.serving


@pytest.mark.parametrize("delay_s", [0, 60])
async def test_a_second_signal_ends_the_waiting(engine: FakeEngine, delay_s: float) -> None:
    async with listening(engine, drain_timeout_s=60, drain_delay_s=delay_s) as up:
        engine.gate.clear()
        question = up.ask("computing")
        await engine.computing.wait()
        up.signal()
        await asyncio.sleep(0.3)
        up.signal()
        async with asyncio.timeout(5):
            assert (await question).json()["error"]["code"] == "draining"
            await up.serving


async def test_a_request_on_its_way_when_the_listener_closes_is_answered(engine: FakeEngine) -> None:
    async with listening(engine) as up:
        reader, writer = await asyncio.open_connection("127.0.0.1", up.client.base_url.port)
        await asyncio.sleep(0.05)
        up.signal()
        body = b'{"prompt": "x"}'
        writer.write(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()
