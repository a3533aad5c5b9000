"""Many requests to a real server, while a probe and another client's question are answered."""

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.faults.tiny_server import KEY, tiny_server
from benchmarks.server_process import Server
from blora.server.keys import line_of

OTHER = "another client's key"
JSON = {"content-type": "application/json"}
BODIES = {
    "empty messages": b'{"messages":[' + b"{}," * 340_000 + b"{}]}",
    "inputs of zero": b'{"inputs":[' + b"0," * 520_000 + b"0]}",
    "lists in lists": b'{"prompt":' + b"[[[[[[[[]]]]]]]]," * 60_000 + b"}",
    "as many values as there may be": b'{"messages":[' + b"{}," * 32_000 + b"{}" + b" " * 900_000 + b"]}",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("crowds")
    with tiny_server(folder) as running:
        with (folder / "keys").open("a") as keys:
            keys.write(line_of("other", "predict", OTHER) + "\n")
        yield running


def busy_s(server: Server) -> float:
    """Return the server's processor time, in seconds."""
    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)


@contextlib.asynccontextmanager
async def client(server: Server, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120, limits=limits) as made:
        yield made


async def seconds(asked: httpx.AsyncClient, crowd: "asyncio.Future[list[httpx.Response]]", path: str) -> list[float]:
    """Return the durations of the requests made beside the crowd."""
    took: list[float] = []
    while not crowd.done():
        started = time.perf_counter()
        if path == "/v1/predict":
            response = await asked.post(path, json={"prompt": "where is my order"})
        else:
            response = await asked.get(path)
        assert response.status_code == 200
        took.append(time.perf_counter() - started)
        await asyncio.sleep(0.01)
    return took


@pytest.mark.parametrize("name", BODIES)
async def test_eight_bodies_of_a_megabyte_do_not_hold_up_a_probe(server: Server, name: str) -> None:
    async with client(server, KEY) as many, client(server, OTHER) as other:
        before = busy_s(server)
        posts = (many.post("/v1/predict", content=BODIES[name], headers=JSON) for _ in range(8))
        crowd = asyncio.gather(*posts)
        took = await seconds(other, crowd, "/livez")
        assert {response.status_code for response in await crowd} <= {413, 422}
        # On an idle machine 0.1 s; a busy one gives its time to others, so what bounds it is the server's own work.
        assert busy_s(server) - before < 3
    assert max(took) < 5


async def test_forty_long_prompts_of_one_client_do_not_hold_up_another(server: Server) -> None:
    long = {"prompt": "where is my order? " * 51_000}  # 970 KB
    async with client(server, KEY) as many, client(server, OTHER) as other:
        await other.post("/v1/predict", json={"prompt": "is it known that there is such a key"})
        before = busy_s(server)
        crowd = asyncio.gather(*(many.post("/v1/predict", json=long) for _ in range(40)))
        took = await seconds(other, crowd, "/v1/predict")
        for response in await crowd:
            assert (response.status_code, response.json()["error"]["code"]) == (413, "prompt_too_long")
        assert busy_s(server) - before < 10
    assert max(took) < 10


async def test_idle_connections_beyond_the_limit_of_files_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = tmp_path / "python"
    limited.write_text(f'#!/bin/sh\nulimit -n 300\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(limited))
    with tiny_server(tmp_path) as few:
        idle = await crowd_of_idle(few, 400)
        async with httpx.AsyncClient(base_url=few.url, timeout=5) as probe:
            for _ in range(20):
                assert (await probe.get("/livez")).status_code == 200
                await asyncio.sleep(0.05)
        for writer in idle:
            writer.close()
        assert "may open only 300 files" in few.log.read_text()
        assert few.log.stat().st_size < 10_000


async def test_connections_that_cannot_be_accepted_do_not_fill_the_log(tmp_path: Path) -> None:
    with tiny_server(tmp_path) as few:
        # Lower than what the server saw when it started.
        resource.prlimit(few.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        idle = await crowd_of_idle(few, 200)
        await asyncio.sleep(5)
        for writer in idle:
            writer.close()
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=few.url, timeout=5) as probe:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await probe.get("/livez")).status_code == 200:
                        break
        assert "Connections cannot be accepted" in few.log.read_text()
        assert few.log.stat().st_size < 10_000


async def crowd_of_idle(server: Server, n: int) -> list[asyncio.StreamWriter]:
    address = httpx.URL(server.url)
    return [(await asyncio.open_connection(address.host, address.port))[1] for _ in range(n)]
