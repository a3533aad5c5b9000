"""Request ids, limits on bodies, and closing of connections while draining."""

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Hashable
from typing import Any

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Message

from blora.server.errors import RateLimitedError, ServerError
from blora.server.http import body_pacer
from blora.server.http.body_pacer import BodyPacer
from blora.server.http.middleware import BodyLimit
from tests.server.fakes import FakeEngine, Running, running

JSON = {"content-type": "application/json"}


async def pieces(total: int, piece: int = 100) -> AsyncIterator[bytes]:
    """Yield a body of a given size in pieces, without a declared length."""
    yield b'{"prompt": "'
    for _ in range(0, total, piece):
        yield b"x" * piece
    yield b'"}'


async def test_a_request_id_is_kept_or_made(server: Running) -> None:
    kept = await server.client.get("/livez", headers={"x-request-id": "abc-1.2_3"})
    assert kept.headers["x-request-id"] == "abc-1.2_3"
    made = [(await server.client.get("/livez")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]


@pytest.mark.parametrize("odd", ["a b", "x" * 65, "<script>", 'a"b', "a,b", ""])
async def test_an_odd_request_id_is_replaced(server: Running, odd: str) -> None:
    response = await server.client.get("/livez", headers={"x-request-id": odd})
    assert response.headers["x-request-id"] != odd


async def test_errors_have_an_id_too(server: Running) -> None:
    response = await server.client.post("/v1/predict", json={}, headers={"x-request-id": "mine"})
    assert (response.status_code, response.headers["x-request-id"]) == (422, "mine")


async def test_a_body_within_the_limit_passes_in_pieces(engine: FakeEngine) -> None:
    async with running(engine, max_body_bytes=1000) as server:
        response = await server.client.post("/v1/predict", content=pieces(900), headers=JSON)
        assert response.status_code == 200


async def test_a_body_in_pieces_is_refused_as_soon_as_it_is_too_long(engine: FakeEngine) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b"x" * 100

    async with running(engine, max_body_bytes=1000) as server:
        response = await server.client.post("/v1/predict", content=endless(), headers=JSON)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert sent <= 1200


async def test_a_declared_length_is_believed_when_it_is_too_long(engine: FakeEngine) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with running(engine, max_body_bytes=1000) as server:
        response = await server.client.post("/v1/predict", content=unread(), headers={**JSON, "content-length": "1001"})
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["error"]["message"]


async def test_a_false_length_is_not(engine: FakeEngine) -> None:
    async with running(engine, max_body_bytes=1000) as server:
        for length in ("5", "-1", "many"):
            response = await server.client.post(
                "/v1/predict", content=pieces(2000), headers={**JSON, "content-length": length}
            )
            assert response.status_code == 413


async def test_waits_that_the_server_imposes_do_not_make_a_client_slow(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BodyPacer, "delay", lambda *args, **kwargs: 0.3)
    async with running(engine, read_timeout_s=1) as server:
        response = await server.client.post("/v1/predict", content=pieces(300), headers=JSON)
        assert response.status_code == 200  # after five pieces


@pytest.mark.parametrize("compressed", [False, True])
async def test_long_bodies_too_fast_for_their_owner_are_told_when_to_come_back(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    monkeypatch.setattr(body_pacer, "_BYTES_PER_S", 100)
    body = json.dumps({"prompt": "x", "seed": 1}).encode() + b" " * (2**16 + 1000)
    content, headers = (gzip.compress(body), {**JSON, "content-encoding": "gzip"}) if compressed else (body, JSON)
    async with running(engine, read_timeout_s=2) as server:
        for _ in range(2):  # what is refused makes nobody wait longer
            response = await server.client.post("/v1/predict", content=content, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limited")
            assert response.headers["retry-after"] == "11"
        assert (await server.client.post("/v1/predict", json={"prompt": "x"})).status_code == 200


async def test_all_waits_of_a_body_together_take_the_read_timeout_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits, refused = 0.0, list[float](), list[ServerError]()

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        waits.append(seconds)

    async def receive() -> Message:
        with contextlib.suppress(RateLimitedError):
            while pacer.delay("peer", 2**16, 2**16, most_s=3) < 2.9:  # other bodies of the same owner
                pass
        return {"type": "http.request", "body": b" " * 2**16, "more_body": len(waits) < 20}

    async def send(message: Message) -> None:
        pass

    def refuse(error: ServerError) -> Response:
        refused.append(error)
        return Response()

    pacer = BodyPacer(lambda: now)
    limited = BodyLimit(Response(), 2**30, 10, refuse)
    monkeypatch.setattr(limited, "_pacer", pacer)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await limited({"type": "http", "headers": [], "client": ("peer", 1)}, receive, send)
    assert [type(error) for error in refused] == [RateLimitedError]
    assert 6 < sum(waits) <= 10  # three waits of about 3 s


async def test_without_keys_the_owner_of_a_body_is_its_peer(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners: list[Hashable] = []

    def delay(self: BodyPacer, owner: Hashable, *args: Any, **kwargs: Any) -> float:
        owners.append(owner)
        return 0.0

    monkeypatch.setattr(BodyPacer, "delay", delay)
    async with running(engine) as server:
        for address in ("10.0.0.1", "10.0.0.2"):
            transport = httpx.ASGITransport(server.app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                assert (await client.post("/v1/predict", json={"prompt": "x"})).status_code == 200
    assert list(dict.fromkeys(owners)) == ["10.0.0.1", "10.0.0.2"]


async def test_connections_close_only_while_draining(server: Running) -> None:
    assert "connection" not in (await server.client.get("/livez")).headers
    server.app.state.service.begin_drain()
    assert (await server.client.get("/livez")).headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/nowhere"])
async def test_answers_are_neither_cached_nor_sniffed(server: Running, path: str) -> None:
    headers = (await server.client.get(path)).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


async def test_what_nobody_foresaw_is_an_answer_like_any_other(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app.state.service, "predictor", lambda: 1 / 0)
    response = await server.client.get("/v1/models", headers={"x-request-id": "mine"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["cache-control"] == "no-store"
    assert await server.metric("blora_requests_total", adapter="unknown", outcome="internal_error") == 1
