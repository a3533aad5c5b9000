"""Life cycle of the service: loading, ready, broken, draining."""

import asyncio

import pytest

from blora.errors import AdapterError
from tests.server.fakes import TRIAGE_DIGEST, FakeEngine, Running, handle, running


async def status(server: Running, path: str) -> tuple[int, str | None]:
    """Return the status and the error code of a path."""
    response = await server.client.get(path)
    return response.status_code, response.json().get("error", {}).get("code")


async def test_alive_while_loading_and_ready_afterwards(engine: FakeEngine) -> None:
    engine.load_gate.clear()
    async with running(engine, ready=False) as server:
        assert await status(server, "/livez") == (200, None)
        assert await status(server, "/readyz") == (503, "not_ready")
        assert await status(server, "/v1/models") == (503, "not_ready")
        assert (await server.client.get("/info")).json()["model"] is None
        refused = await server.client.post("/v1/predict", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        engine.load_gate.set()
        await server.app.state.service.settled.wait()
        assert await status(server, "/readyz") == (200, None)


async def test_a_model_that_does_not_load_says_why() -> None:
    engine = FakeEngine(load_error=AdapterError("got no such folder, expected one: create it"))
    async with running(engine) as server:
        assert server.app.state.service.failure == "got no such folder, expected one: create it"
        response = await server.client.get("/readyz")
        assert response.status_code == 503
        assert "no such folder" in response.json()["error"]["message"]
        assert await status(server, "/livez") == (200, None)


async def test_an_unexpected_failure_to_load_is_told_too() -> None:
    async with running(FakeEngine(load_error=RuntimeError("out of memory"))) as server:
        assert server.app.state.service.failure == "RuntimeError: out of memory"


async def test_an_unknown_default_adapter_is_a_failure(engine: FakeEngine) -> None:
    async with running(engine, default_adapter="other") as server:
        assert "default adapter 'other'" in server.app.state.service.failure


async def test_an_adapter_with_more_draws_than_the_cap_is_a_failure() -> None:
    engine = FakeEngine(handles=(handle("big", TRIAGE_DIGEST, n_samples=65),))
    async with running(engine, default_adapter=None) as server:
        assert "65 draws, expected at most 64: raise --n-samples-cap" in server.app.state.service.failure


async def test_a_broken_model_is_unready_until_it_works_again(server: Running, engine: FakeEngine) -> None:
    engine.broken = True
    failed = await server.client.post("/v1/predict", json={"prompt": "x"})
    assert failed.status_code == 500
    assert await status(server, "/readyz") == (503, "not_ready")
    assert await status(server, "/livez") == (200, None)
    engine.broken = False
    assert await status(server, "/readyz") == (200, None)


async def test_those_who_ask_at_the_same_time_share_a_probe(
    server: Running, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, over = [], asyncio.Event()

    async def probe() -> None:
        probes.append(1)
        await over.wait()

    engine.broken = True
    await server.client.post("/v1/predict", json={"prompt": "x"})
    monkeypatch.setattr(engine, "probe", probe)
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(status(server, "/readyz")) for _ in range(3)]
        while not probes:
            await asyncio.sleep(0.01)
        over.set()
    assert [await one for one in asking] == 3 * [(200, None)]
    assert len(probes) == 1
    assert await status(server, "/readyz") == (200, None)
    assert len(probes) == 2


async def test_a_server_whose_device_is_lost_asks_to_be_started_again(server: Running, engine: FakeEngine) -> None:
    engine.broken, engine.lost = True, "CUDA error: an illegal memory access was encountered"
    assert (await server.client.post("/v1/predict", json={"prompt": "x"})).status_code == 500
    assert await status(server, "/readyz") == (503, "not_ready")
    assert await status(server, "/livez") == (503, "not_ready")
    assert engine.lost in (await server.client.get("/livez")).text


async def test_one_poisoned_input_leaves_the_server_ready(server: Running) -> None:
    assert (await server.client.post("/v1/predict", json={"prompt": "POISON"})).status_code == 500
    assert await status(server, "/readyz") == (200, None)


async def test_draining_is_unready_and_still_answers(server: Running) -> None:
    server.app.state.service.begin_drain()
    assert await status(server, "/readyz") == (503, "draining")
    assert await status(server, "/livez") == (200, None)
    assert (await server.client.post("/v1/predict", json={"prompt": "x"})).status_code == 200


async def test_stopping_tells_all_requests_at_once_and_refuses_newcomers(server: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    questions = [asyncio.create_task(server.client.post("/v1/predict", json={"prompt": "computing"}))]
    await engine.computing.wait()
    questions += [
        asyncio.create_task(server.client.post("/v1/predict", json={"prompt": f"waiting {i}"})) for i in range(4)
    ]
    while await server.metric("blora_queue_depth") < 4:
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await server.app.state.service.stop()
        questions.append(asyncio.create_task(server.client.post("/v1/predict", json={"prompt": "late"})))
        for response in await asyncio.gather(*questions):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")


@pytest.mark.parametrize("times", [1, 2])
async def test_stopping_while_loading_ends_the_loading(engine: FakeEngine, times: int) -> None:
    engine.load_gate.clear()
    async with asyncio.timeout(5):
        async with running(engine, ready=False) as server:
            for _ in range(times):
                await server.app.state.service.stop()
