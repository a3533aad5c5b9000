"""A forward pass without progress: not ready soon, not alive after minutes, and both again once it goes on."""

import asyncio

import pytest

from blora.server.prediction import service
from tests.server.fakes import FakeEngine, Running, running
from tests.server.prediction.test_service import status


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a server unready after 50 ms without progress."""
    monkeypatch.setattr(service, "_SILENT_S", 0.05)


async def hang(server: Running, engine: FakeEngine) -> asyncio.Task[object]:
    engine.gate.clear()
    asked = asyncio.create_task(server.client.post("/v1/predict", json={"prompt": "x"}))
    await engine.computing.wait()
    return asked  # type: ignore[return-value]


async def until(server: Running, path: str, wanted: tuple[int, str | None]) -> None:
    async with asyncio.timeout(30):
        while await status(server, path) != wanted:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("soon")
async def test_a_pass_without_progress_is_not_ready_until_it_goes_on(engine: FakeEngine) -> None:
    async with running(engine) as server:
        assert await status(server, "/readyz") == (200, None)
        asked = await hang(server, engine)
        await until(server, "/readyz", (503, "not_ready"))
        message = (await server.client.get("/readyz")).json()["error"]["message"]
        assert "no progress" in message
        assert await status(server, "/livez") == (200, None)
        engine.gate.set()
        await asked
        assert await status(server, "/readyz") == (200, None)


@pytest.mark.usefixtures("soon")
async def test_a_pass_that_hangs_after_its_clients_have_gone_is_noticed(engine: FakeEngine) -> None:
    async with running(engine, timeout_s=0.05) as server:
        asked = await hang(server, engine)
        await asked
        await until(server, "/readyz", (503, "not_ready"))
        engine.gate.set()
        await until(server, "/readyz", (200, None))


async def test_after_minutes_the_process_is_not_alive(engine: FakeEngine) -> None:
    async with running(engine, hang_timeout_s=0.1) as server:
        asked = await hang(server, engine)
        await until(server, "/livez", (503, "not_ready"))
        engine.gate.set()
        await asked
        assert await status(server, "/livez") == (200, None)


async def test_a_process_that_is_never_to_be_restarted_stays_alive(engine: FakeEngine) -> None:
    async with running(engine, hang_timeout_s=0) as server:
        asked = await hang(server, engine)
        await asyncio.sleep(0.1)
        assert await status(server, "/livez") == (200, None)
        engine.gate.set()
        await asked


async def test_a_server_with_nothing_to_do_is_not_silent(engine: FakeEngine) -> None:
    async with running(engine, hang_timeout_s=0.01) as server:
        await server.client.post("/v1/predict", json={"prompt": "x"})
        await asyncio.sleep(0.05)
        assert await status(server, "/livez") == (200, None)
        assert await server.metric("blora_backlog_seconds") == 0
        asked = await hang(server, engine)
        await asyncio.sleep(0.02)
        assert await server.metric("blora_backlog_seconds") > 0
        engine.gate.set()
        await asked
