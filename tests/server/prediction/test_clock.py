"""Jumps of the wall clock, as after a suspend or a correction, affect no timing."""

import time

import pytest

from blora.server.errors import RateLimitedError
from blora.server.http.authentication import RateLimiter
from tests.server.fakes import FakeEngine, running

DAY_S = 86400.0


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
async def test_a_jump_of_the_clock_expires_nothing_and_hurries_nothing(
    monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    engine, real = FakeEngine(), time.time
    async with running(engine, timeout_s=5) as server:
        before = (await server.client.post("/v1/predict", json={"prompt": "x"})).json()
        monkeypatch.setattr(time, "time", lambda: real() + jump_s)
        after = await server.client.post("/v1/predict", json={"prompt": "x"})
        assert after.status_code == 200
        answer = after.json()
        assert answer["created"] - before["created"] == pytest.approx(jump_s, abs=5)
        assert 0 <= answer["timing"]["queue_ms"] < 5000
        assert 0 <= answer["timing"]["compute_ms"] < 5000
        assert (await server.client.get("/readyz")).status_code == 200


def test_a_jump_gives_no_key_more_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    rate, real = RateLimiter(per_minute=1), time.time
    rate.take("key")
    monkeypatch.setattr(time, "time", lambda: real() + DAY_S)
    with pytest.raises(RateLimitedError):
        rate.take("key")
