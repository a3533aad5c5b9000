"""A Redis that is replaced by another one, to which its name leads from then on."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

from tests.server.monitoring.redis_store import Store, needs_redis, replica, settled
from tests.server.monitoring.test_feedback import ask

pytestmark = needs_redis


async def test_after_a_failover_no_connection_stays_at_the_old_primary(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "promoted"
    folder.mkdir()
    promoted = Store(folder)
    promoted.start()
    port, connect = urlsplit(promoted.url).port, asyncio.open_connection

    async def lead_to_the_promoted(**to: Any) -> Any:
        return await connect(**(to | {"port": port}))

    try:
        async with replica(store) as server:
            await settled(server, (await ask(server))["id"], "billing")
            with Redis.from_url(store.url) as demoted:
                demoted.replicaof("127.0.0.1", port)
            monkeypatch.setattr(asyncio, "open_connection", lead_to_the_promoted)
            for _ in range(2):
                answer = await ask(server)
                assert (await settled(server, answer["id"], "billing")).json() == {"correct": True}
        assert f"blora:2:prediction:{answer['id']}" in promoted.expiries()
    finally:
        promoted.stop()
