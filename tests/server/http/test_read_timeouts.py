"""Clients that send byte by byte to a server with real sockets: they are disconnected, and delay nobody."""

import asyncio
from collections.abc import AsyncIterator

import httpx

from tests.server.commands.test_shutdown import Listening, listening
from tests.server.fakes import FakeEngine, running

HEAD = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


async def drip(server: Listening, start: bytes, piece: bytes) -> bytes:
    """Send a piece every 50 ms until the server closes the connection, and return its response."""
    url = server.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(start)
    heard = b""
    try:
        async with asyncio.timeout(10):
            while True:
                writer.write(piece)
                try:
                    async with asyncio.timeout(0.05):
                        said = await reader.read(1000)
                except TimeoutError:
                    continue
                if not said:
                    return heard
                heard += said
    except ConnectionError:
        return heard
    finally:
        writer.close()


async def test_headers_that_drip_are_hung_up_on() -> None:
    async with listening(FakeEngine(), read_timeout_s=0.3) as server:
        assert await drip(server, HEAD, b"x-slow: 1\r\n") == b""


async def test_a_connection_that_says_nothing_is_hung_up_on() -> None:
    async with listening(FakeEngine(), read_timeout_s=0.3) as server:
        assert await drip(server, b"", b"") == b""


async def test_headers_of_a_second_request_that_drip_are_hung_up_on() -> None:
    async with listening(FakeEngine(), read_timeout_s=0.3) as server:
        heard = await drip(server, b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" + HEAD, b"x-slow: 1\r\n")
        assert heard.startswith(b"HTTP/1.1 200")
        assert heard.count(b"HTTP/1.1") == 1


async def test_an_idle_connection_is_kept_for_as_long_as_is_set() -> None:
    async with listening(FakeEngine(), read_timeout_s=0.2, keep_alive_s=1) as server:
        url = server.client.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        for _ in range(2):
            writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.read(10000)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.6)  # longer than headers may take, shorter than it may be idle
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_a_connection_whose_request_was_refused_before_its_body_came_is_kept() -> None:
    async with listening(FakeEngine(), read_timeout_s=0.3, max_body_bytes=10) as server:
        url = server.client.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(HEAD + b"content-length: 20\r\n\r\n")
        assert (await reader.read(10000)).startswith(b"HTTP/1.1 413")
        writer.write(b"x" * 20)
        await asyncio.sleep(1)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.read(10000)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_body_that_drips_gets_408() -> None:
    async with listening(FakeEngine(), read_timeout_s=0.3) as server:
        heard = await drip(server, HEAD + b"content-length: 100000\r\n\r\n", b" ")
        assert heard.startswith(b"HTTP/1.1 408")
        assert b"slow_request" in heard


async def test_a_slow_answer_is_no_slow_request() -> None:
    engine = FakeEngine()
    async with listening(engine, read_timeout_s=0.2) as server:
        engine.gate.clear()
        asked = server.ask("x")
        await asyncio.sleep(0.5)
        engine.gate.set()
        assert (await asked).status_code == 200


async def test_three_hundred_that_drip_hold_up_nobody() -> None:
    async with listening(FakeEngine(), read_timeout_s=2) as server:
        url = server.client.base_url
        slow = [await asyncio.open_connection(url.host, url.port) for _ in range(300)]
        for _, writer in slow:
            writer.write(HEAD)
        async with asyncio.timeout(2):
            assert (await server.ask("x")).status_code == 200
        async with asyncio.timeout(10):
            said = await asyncio.gather(*(reader.read() for reader, _ in slow))
        assert set(said) == {b""}
        for _, writer in slow:
            writer.close()


async def test_a_body_that_comes_slowly_is_refused_with_a_reason(engine: FakeEngine) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async with running(engine, read_timeout_s=0.05) as server:
        response = await server.client.post("/v1/predict", content=slowly())
        assert isinstance(response, httpx.Response)
        assert (response.status_code, response.json()["error"]["code"]) == (408, "slow_request")
        assert "more than 0.05 s" in response.json()["error"]["message"]
