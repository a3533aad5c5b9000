"""A broken promise is remembered in Redis: by a restarted server, a reloaded adapter and every other replica."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from blora.server.engines.handle import AdapterHandle
from blora.server.errors import FeedbackUnavailableError
from blora.server.keys import line_of
from blora.server.monitoring.ledgers.protocol import Contents, Entry, Tally, hashes
from blora.server.monitoring.ledgers.redis_ledger import RedisLedger
from tests.server.fakes import CHOICES, FakeEngine, Running, running
from tests.server.monitoring.redis_store import Store, needs_redis, replica, settled
from tests.server.monitoring.test_feedback import CALIBRATED, TARGET, ask

pytestmark = needs_redis


async def shown(server: Running, value: float) -> bool:
    """Return whether the alarm shows a value soon; the server reads it in the background."""
    line = f'blora_promise_broken{{adapter="triage",target_risk="0.05"}} {value}'
    deadline = time.monotonic() + 10
    while line not in (await server.client.get("/metrics")).text and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return line in (await server.client.get("/metrics")).text


async def test_an_alarm_outlives_a_restart_of_the_server_and_outcomes_that_alone_would_not_raise_it(
    store: Store,
) -> None:
    async with replica(store) as server:
        first = await ask(server)
        for answer in (first, await ask(server)):
            await settled(server, answer["id"], "account")
        for _ in range(60):
            await settled(server, (await ask(server))["id"], "billing")
    async with replica(store) as again, replica(store) as other:
        assert await shown(again, 1.0)  # before any outcome is told
        await settled(again, (await ask(again))["id"], "billing")
        assert await shown(again, 1.0)
        await settled(other, first["id"], "billing")
        assert await shown(other, 0.0)
    async with replica(store) as corrected:
        assert await shown(corrected, 0.0)


async def test_a_replica_shows_what_another_one_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blora.server.monitoring.feedback._LOOK_S", 0.05)
    async with replica(store) as told, replica(store) as other:
        answers = [await ask(told) for _ in range(3)]
        for answer in answers:
            await settled(told, answer["id"], "account")
        assert await shown(other, 1.0)
        for answer in answers:
            await settled(told, answer["id"], "billing")
        assert await shown(other, 0.0)


async def test_an_alarm_is_shown_again_once_its_adapter_is_loaded_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load_adapter(path: Path, name: str) -> AdapterHandle:
        return CALIBRATED

    engine = FakeEngine(handles=(CALIBRATED,))
    monkeypatch.setattr(engine, "load_adapter", load_adapter)
    (tmp_path / "keys").write_text(line_of("ops", "admin", "ops"))
    (tmp_path / "triage").mkdir()
    settings = {"feedback_redis": store.url, "adapter_root": tmp_path, "api_keys": tmp_path / "keys"}
    async with running(engine, **settings) as server:
        server.client.headers["authorization"] = "Bearer ops"
        for _ in range(3):
            await settled(server, (await ask(server))["id"], "account")
        await server.client.delete("/v1/adapters/triage")
        assert "blora_promise_broken{" not in (await server.client.get("/metrics")).text
        await server.client.post("/v1/adapters", json={"name": "triage", "path": "triage"})
        assert await shown(server, 1.0)


async def test_an_alarm_is_read_once_redis_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(store) as server:
        for _ in range(3):
            await settled(server, (await ask(server))["id"], "account")
    monkeypatch.setattr("blora.server.monitoring.feedback._RETRY_S", 0.05)
    reading = RedisLedger.tally
    failures = [FeedbackUnavailableError("unreachable")] * 3

    async def failing(ledger: RedisLedger, *key: Any) -> Any:
        if failures:
            raise failures.pop()
        return await reading(ledger, *key)

    monkeypatch.setattr(RedisLedger, "tally", failing)
    async with replica(store) as again:
        assert await shown(again, 1.0)


async def test_an_alarm_stays_where_memory_is_short_and_old_predictions_are_dropped(store: Store) -> None:
    store.stop()
    store.start("--maxmemory", "3mb", "--maxmemory-policy", "volatile-ttl")
    ledger, adapter = RedisLedger(store.url, 100), Contents("triage", "sha256:1", "sha256:2")
    entry = Entry(adapter, None, b"salt", hashes(CHOICES, b"salt"), leader=0, target_risk=0.05, requested=True)
    try:
        await ledger.settle("pred_first", entry, 1)
        await ledger.reject(adapter, 0.05, 0)
        stored = list[Entry | None]()
        for batch in range(12):
            for k in range(500):
                ledger.remember(f"pred_{batch}_{k}", entry, stored.append, None)
            while len(stored) < 500 * (batch + 1):
                await asyncio.sleep(0.01)
            assert await ledger.tally(adapter, 0.05) == Tally(1, 1, 0, rejected_at=0)
        kept = {batch: [await ledger.find(f"pred_{batch}_{k}") == entry for k in range(500)] for batch in (0, 11)}
        assert sum(kept[0]) < 250  # there was no room for all; Redis drops the oldest of a few that it draws
        assert all(kept[11])
    finally:
        await ledger.close()


async def test_a_text_counts_once_for_all_replicas_and_for_restarted_ones(store: Store) -> None:
    """At an error of 2 % under a promise of 5 %, one text that is answered wrongly would raise the alarm by itself."""
    told = 0
    for _ in range(4):
        async with replica(store) as one, replica(store) as other:
            for server in (one, other):
                for text in ("p=0.95 the same", "P=0.95  the same "):
                    await settled(server, (await ask(server, text.lower()))["id"], "account")
            promised = [
                await server.metric("blora_promised_answers_total", **TARGET, requested="true")
                for server in (one, other)
            ]
            told += sum(promised)
            for asked in ("true", "false"):
                counts = {"outcome": "wrong", "requested": asked}
                found = sum(
                    [await server.metric("blora_outcomes_total", **TARGET, **counts) for server in (one, other)]
                )
                assert found == (sum(promised) if asked == "true" else 4 - sum(promised))
            assert await other.metric("blora_promise_broken", **TARGET) == 0
    assert told == 1
    with Redis.from_url(store.url) as client:
        [counts] = client.keys("blora:2:outcomes:*")
        assert client.hget(counts, "outcomes") == b"1"


async def test_a_prediction_that_is_written_again_stays_the_one_that_counts(store: Store) -> None:
    """After a lost reply redis-py writes again."""
    adapter, text = Contents("triage", "sha256:1", "sha256:2"), b"hash of a text"
    entry = Entry(adapter, None, b"salt", hashes(CHOICES, b"salt"), leader=0, target_risk=0.05, requested=True)
    stored = list[Entry | None]()
    for ledger in (RedisLedger(store.url, 100), RedisLedger(store.url, 100)):
        for name, about in (("pred_1", text), ("pred_2", text), ("pred_3", b"another"), ("pred_4", None)):
            ledger.remember(name, entry, stored.append, about)
        await ledger.close()
    requested = [one is not None and one.requested for one in stored]
    assert requested == 2 * [True, False, True, True]
    ledger = RedisLedger(store.url, 100)
    try:
        found = [await ledger.find(f"pred_{k}") for k in range(1, 5)]
    finally:
        await ledger.close()
    assert found == stored[:4]
