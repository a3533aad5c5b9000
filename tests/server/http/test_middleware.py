"""Request ids, limits on bodies, and closing of connections while draining."""

from collections.abc import AsyncIterator

import pytest

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
