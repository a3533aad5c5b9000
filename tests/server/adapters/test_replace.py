"""Replacing an adapter with PUT between two requests."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from blora.server.engines.handle import AdapterHandle
from tests.server.adapters.test_loader import ADMIN, ask, digest_of, root
from tests.server.fakes import FakeEngine, Running, running

__all__ = ["root"]


@pytest.fixture
async def server(engine: FakeEngine, root: Path) -> AsyncIterator[Running]:
    async with running(engine, api_keys=root.parent / "keys", adapter_root=root, default_adapter=None) as up:
        up.client.headers.update(ADMIN)
        yield up


async def put(server: Running, path: str = "below/one", name: str = "new") -> httpx.Response:
    return await server.client.put(f"/v1/adapters/{name}", json={"path": path})


def named(answer: dict[str, str]) -> tuple[str, str]:
    return answer["name"], answer["digest"]


async def test_it_loads_keeps_and_replaces(server: Running, engine: FakeEngine) -> None:
    made = await put(server)
    assert (made.status_code, named(made.json())) == (201, ("new", digest_of("1")))
    for _ in range(2):
        same = await put(server)
        assert (same.status_code, named(same.json())) == (200, ("new", digest_of("1")))
    other = await put(server, "below/two")
    assert (other.status_code, named(other.json())) == (200, ("new", digest_of("22")))
    assert await ask(server, "new") == (200, digest_of("22"))
    assert await ask(server, f"new@{digest_of('1')}") == (404, "digest_mismatch")
    assert engine.forgotten == [digest_of("1")] * 3
    assert await server.metric("blora_adapter_info", adapter="new", digest=digest_of("22")) == 1
    names = [card["name"] for card in (await server.client.get("/v1/adapters")).json()["data"]]
    assert names == ["triage", "open", "new"]


async def test_every_request_meanwhile_finds_the_old_one_or_the_new_one(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeEngine.load_adapter

    async def slow(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        for _ in range(20):
            await asyncio.sleep(0)
        return await real(self, path, name)

    monkeypatch.setattr(FakeEngine, "load_adapter", slow)
    await put(server)
    done = asyncio.Event()
    found: set[tuple[int, str]] = set()

    async def keep_asking() -> None:
        while not done.is_set():
            found.add(await ask(server, "new"))

    asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
    for path in ("below/two", "below/one") * 5:
        assert (await put(server, path)).status_code == 200
    done.set()
    await asyncio.gather(*asking)
    assert found == {(200, digest_of("1")), (200, digest_of("22"))}


async def test_a_request_in_flight_finishes_on_the_old_one(server: Running, engine: FakeEngine) -> None:
    await put(server)
    engine.gate.clear()
    asked = asyncio.create_task(ask(server, "new"))
    await engine.computing.wait()
    assert (await put(server, "below/two")).status_code == 200
    engine.gate.set()
    assert await asked == (200, digest_of("1"))


async def test_one_that_cannot_be_loaded_leaves_the_old_one(server: Running) -> None:
    await put(server)
    for path, status in (("nothing", 422), ("below/greedy", 422), ("../outside", 403)):
        assert (await put(server, path)).status_code == status
    assert await ask(server, "new") == (200, digest_of("1"))


async def test_the_default_stays_the_default(engine: FakeEngine, root: Path) -> None:
    alone = FakeEngine(handles=engine.handles[:1])
    async with running(alone, api_keys=root.parent / "keys", adapter_root=root, default_adapter=None) as server:
        server.client.headers.update(ADMIN)
        await put(server, "below/two", "second")
        await put(server, name="triage")
        answer = await server.client.post("/v1/predict", json={"prompt": "p=0.9", "choices": ["a", "b"]})
        assert named(answer.json()["adapter"]) == ("triage", digest_of("1"))


@pytest.mark.parametrize("body", [{}, {"path": ""}, {"path": "below/one", "name": "new"}, {"path": 1}])
async def test_a_bad_body_is_refused(server: Running, body: dict[str, object]) -> None:
    response = await server.client.put("/v1/adapters/new", json=body)
    assert response.status_code == 422
    assert len((await server.client.get("/v1/adapters")).json()["data"]) == 2


async def test_only_an_admin_replaces(server: Running) -> None:
    server.client.headers.pop("authorization")
    assert (await put(server)).status_code == 401


async def test_the_document_knows_it(server: Running) -> None:
    operation = (await server.client.get("/openapi.json")).json()["paths"]["/v1/adapters/{name}"]["put"]
    assert {"200", "201", "4XX", "503", "504"} <= operation["responses"].keys()
    assert "422" not in operation["responses"]
