"""Requests that are cancelled at any moment leave their connections to others."""

import asyncio
from contextlib import suppress

import httpx
import pytest

from blora.client.sending import send
from tests.blora.client.serving import Repeating, listening

# More turns of the event loop than a request takes.
MANY = 60


async def test_a_request_that_is_cancelled_at_any_turn_of_the_loop_takes_no_connection_along() -> None:
    server, limits = Repeating({"ok": True}), httpx.Limits(max_connections=2)
    async with listening(server) as url, httpx.AsyncClient(base_url=url, limits=limits, timeout=10) as http:
        n_cancelled = 0
        for n_turns in (*range(MANY), *range(MANY)):
            call = asyncio.create_task(send(http, http.build_request("POST", "/", json={})))
            for _ in range(n_turns):
                await asyncio.sleep(0)
            n_cancelled += call.cancel()
            with suppress(asyncio.CancelledError):
                await call
        assert n_cancelled > MANY / 2
        response = await send(http, http.build_request("POST", "/", json={}))
        assert response.json() == {"ok": True}
        assert server.n_open <= 2


async def test_a_request_that_is_cancelled_twice_ends_once_its_connection_is_closed() -> None:
    server = Repeating({}, wait_s=60)
    async with listening(server) as url, httpx.AsyncClient(base_url=url) as http, asyncio.timeout(10):
        call = asyncio.create_task(send(http, http.build_request("POST", "/", json={})))
        while not server.n_open:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert "0 active" in repr(http._transport._pool)  # type: ignore[attr-defined]


async def test_a_transport_that_tells_nothing_is_cancelled_too() -> None:
    async def waits(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async with httpx.AsyncClient(transport=httpx.MockTransport(waits)) as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await send(http, http.build_request("GET", "http://test/"))


async def test_steps_are_told_to_whoever_asked_for_them_and_errors_are_raised() -> None:
    told = []

    async def trace(event: str, details: object) -> None:
        told.append(event)

    async with listening(Repeating({})) as url, httpx.AsyncClient(base_url=url) as http:
        await send(http, http.build_request("POST", "/", json={}, extensions={"trace": trace}))
    assert "connection.connect_tcp.complete" in told
    async with httpx.AsyncClient(base_url=url) as http:
        with pytest.raises(httpx.ConnectError):
            await send(http, http.build_request("POST", "/"))
