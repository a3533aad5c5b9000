"""Connections to a server with real sockets: replacement of idle ones, and error bodies of refusals."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.server.commands.test_shutdown import Listening, listening
from tests.server.fakes import FakeEngine

GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(server: Listening) -> Streams:
    url = server.client.base_url
    return await asyncio.open_connection(url.host, url.port)


async def say(server: Listening, request: bytes) -> bytes:
    """Return everything that the server sends until it closes the connection."""
    reader, writer = await connect(server)
    writer.write(request)
    async with asyncio.timeout(5):
        heard = await reader.read()
    writer.close()
    return heard


def parts(heard: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = heard.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body) if body else None


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(0.3):
            return await reader.read() == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


async def test_one_connection_too_many_takes_the_place_of_the_one_longest_idle() -> None:
    async with listening(FakeEngine(), max_connections=3) as server:
        idle = []
        for _ in range(3):
            idle.append(await connect(server))
            await asyncio.sleep(0.05)
        reader, writer = await connect(server)
        writer.write(GET)
        assert (await reader.read(10_000)).startswith(b"HTTP/1.1 200")
        assert [await closed(other) for other, _ in idle] == [True, False, False]
        for _, other in [*idle, (reader, writer)]:
            other.close()


async def test_a_thousand_idle_connections_keep_nobody_out() -> None:
    async with listening(FakeEngine(), max_connections=20) as server:
        idle = [await connect(server) for _ in range(400)]
        for _ in range(10):
            assert (await server.client.get("/livez")).status_code == 200
        assert len(server.server.server_state.connections) <= 20
        for _, writer in idle:
            writer.close()


async def test_bodies_that_never_end_keep_nobody_out() -> None:
    async with listening(FakeEngine(), max_connections=3) as server:
        slow = [await connect(server) for _ in range(3)]
        for _, writer in slow:
            writer.write(POST + b"content-length: 1000\r\n\r\n{")
        await asyncio.sleep(0.1)
        assert (await server.client.get("/livez")).status_code == 200
        for _, writer in slow:
            writer.close()


async def test_where_all_are_being_answered_one_more_is_refused_and_counted() -> None:
    engine = FakeEngine()
    async with listening(engine, max_connections=2) as server:
        engine.gate.clear()
        asked = [server.ask("x"), server.ask("y")]
        await engine.computing.wait()
        await asyncio.sleep(0.1)
        status, headers, body = parts(await say(server, b""))
        assert (status, body["error"]["code"]) == (503, "too_many_connections")
        assert (headers["retry-after"], headers["connection"]) == ("1", "close")
        engine.gate.set()
        assert [response.status_code for response in await asyncio.gather(*asked)] == [200, 200]
        assert 'outcome="too_many_connections"} 1.0' in server.service.metrics.render().decode()


@asynccontextmanager
async def in_use(n: int) -> AsyncIterator[Listening]:
    """Yield a server that allows a number of connections and is answering on all of them."""
    engine = FakeEngine()
    async with listening(engine, max_connections=n) as server:
        engine.gate.clear()
        asked = [server.ask(str(i)) for i in range(n)]
        async with asyncio.timeout(5):
            while sum(one._busy() for one in server.server.server_state.connections) < n:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        yield server
        engine.gate.set()
        assert [response.status_code for response in await asyncio.gather(*asked)] == [200] * n


@pytest.mark.parametrize("path", [b"/livez", b"/readyz", b"/metrics"])
async def test_probes_and_metrics_are_answered_while_all_connections_are_in_use(path: bytes) -> None:
    async with in_use(2) as server:
        for _ in range(20):
            heard = await say(server, GET.replace(b"/livez", path) + GET)
            assert heard.startswith(b"HTTP/1.1 200")
            assert heard.count(b"HTTP/1.1 ") == 1
            assert b"connection: close" in heard


@pytest.mark.parametrize("request_line", [b"POST /v1/predict", b"GET /v1/models", b"GET //livez"])
async def test_other_requests_are_refused_while_all_connections_are_in_use(request_line: bytes) -> None:
    async with in_use(2) as server:
        status, headers, body = parts(await say(server, request_line + b" HTTP/1.1\r\nhost: x\r\n\r\n" + GET))
        assert (status, body["error"]["code"]) == (503, "too_many_connections")
        assert (headers["retry-after"], headers["connection"]) == ("1", "close")
        assert headers["x-content-type-options"] == "nosniff"
        assert len(headers["x-request-id"]) == 32


async def test_silent_connections_beyond_the_limit_are_few_and_keep_no_probe_out() -> None:
    async with in_use(2) as server:
        silent = [await connect(server) for _ in range(100)]
        async with asyncio.timeout(5):
            heard = [parts(await reader.read())[2]["error"]["code"] for reader, _ in silent[:84]]
        assert set(heard) == {"too_many_connections"}
        assert (await say(server, GET)).startswith(b"HTTP/1.1 200")
        assert len(server.server.server_state.connections) <= 2 + 16
        for _, writer in silent:
            writer.close()


def asks_without_reading(server: Listening) -> socket.socket:
    """Open a client that asks for many long answers and reads none."""
    asking = socket.socket()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    asking.connect((server.client.base_url.host, server.client.base_url.port))
    asking.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        asking.send(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
    return asking


async def test_who_asks_and_does_not_read_keeps_nobody_out() -> None:
    async with listening(FakeEngine(), max_connections=3) as server:
        deaf = [asks_without_reading(server) for _ in range(3)]
        async with asyncio.timeout(30):
            while sum(one.flow.write_paused for one in server.server.server_state.connections) < 3:
                await asyncio.sleep(0.05)
        assert (await server.client.get("/livez")).status_code == 200
        for asking in deaf:
            asking.close()


async def test_who_asks_and_does_not_read_is_hung_up_on() -> None:
    async with listening(FakeEngine(), read_timeout_s=0.3) as server:
        asking = asks_without_reading(server)
        await asyncio.sleep(0.1)
        assert server.server.server_state.connections
        async with asyncio.timeout(30):
            while server.server.server_state.connections:
                await asyncio.sleep(0.05)
        asking.close()


async def test_who_reads_slowly_gets_all() -> None:
    async with listening(FakeEngine(), read_timeout_s=0.5) as server:
        reader, writer = await connect(server)
        writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 199)
        writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        heard = b""
        async with asyncio.timeout(60):
            while more := await reader.read(500_000):
                heard += more
                await asyncio.sleep(0.03)
        assert heard.count(b"HTTP/1.1 200") == 200
        writer.close()


async def test_what_is_not_http_gets_the_one_shape_of_every_error(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(FakeEngine()) as server:
        caplog.clear()
        status, headers, body = parts(await say(server, b"hello\r\n\r\n"))
        assert (status, headers["connection"]) == (400, "close")
        assert body.keys() == {"error"}
        assert (body["error"]["code"], body["error"]["type"]) == ("invalid_http", "invalid_request_error")
        assert len(headers["x-request-id"]) == 32
        assert headers["x-content-type-options"] == "nosniff"
        assert 'outcome="invalid_http"} 1.0' in server.service.metrics.render().decode()
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_body_that_stops_being_http_is_refused_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(FakeEngine()) as server:
        caplog.clear()
        heard = await say(server, POST + b"transfer-encoding: chunked\r\n\r\nnonsense\r\n")
        assert parts(heard)[2]["error"]["code"] == "invalid_http"
        assert (await server.client.get("/livez")).status_code == 200
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_body_with_two_lengths_is_refused_and_the_connection_closed() -> None:
    hidden = b"GET /info HTTP/1.1\r\nhost: x\r\n\r\n"
    async with listening(FakeEngine()) as server:
        request = POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + hidden
        heard = await say(server, request)
        status, _, body = parts(heard)
        assert (status, body["error"]["code"]) == (400, "invalid_http")
        assert heard.count(b"HTTP/1.1 ") == 1


async def test_an_upgrade_that_there_is_none_of_is_ignored_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    async with listening(FakeEngine()) as server:
        caplog.clear()
        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        assert (await server.client.get("/livez", headers=upgrade)).status_code == 200
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_head_is_answered_as_get_without_a_body() -> None:
    async with listening(FakeEngine()) as server:
        for path in ("/livez", "/readyz", "/info", "/metrics", "/v1/models"):
            got = await server.client.get(path)
            head = await server.client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == got.headers["content-type"]
        assert (await server.client.head("/v1/predict")).status_code == 405
        assert (await server.client.head("/nowhere")).status_code == 404
