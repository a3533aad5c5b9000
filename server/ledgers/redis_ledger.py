"""A ledger in Redis: any replica can be told of any replica's prediction, and all count together."""

import asyncio
import json
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from blora.server.errors import FeedbackUnavailableError
from blora.server.ledgers.protocol import Contents, Entry, Tally

__all__ = ["RedisLedger"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT_S = 2.0
# More would not be faster, and a Redis has only so many.
_CONNECTIONS = 10
# The label and the counts together, so that no outcome is counted twice or not at all, whatever is asked again.
_SETTLE = """
local is_first = redis.call('HSETNX', KEYS[1], 'label', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local first = redis.call('HGET', KEYS[1], 'label')
if is_first == 0 or not KEYS[2] then return {first} end
local outcomes = redis.call('HINCRBY', KEYS[2], 'outcomes', 1)
local wrong = redis.call('HINCRBY', KEYS[2], 'wrong', ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return {first, outcomes, wrong}
"""
# Writes under way; beyond it Redis is too slow to keep up, and predictions go unremembered.
_MAX_WRITING = 1000


class RedisLedger:
    """See Ledger.

    Keys are blora:prediction:ID, a hash that expires, and blora:outcomes:NAME:DIGEST:RISK, two counts that expire once
    nothing has been counted for as long; outcomes that were not asked for have counts of their own, whose key ends in
    :volunteered. Answers never wait for Redis: a prediction that cannot be written is not remembered, and the log says
    so.

    Args:
        url: redis://HOST:PORT/NUMBER.
        keep_s: seconds after which a prediction is forgotten.
    """

    def __init__(self, url: str, keep_s: float) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            # Once more, for a connection that was kept may have been closed at the other end since.
            retry=Retry(NoBackoff(), retries=1),
        )
        self._redis: Any = Redis.from_pool(pool)
        self._keep_s = max(1, int(keep_s))
        self._writing: set[asyncio.Task[None]] = set()

    def remember(self, prediction_id: str, entry: Entry) -> None:
        """See Ledger."""
        if len(self._writing) >= _MAX_WRITING:
            logger.warning("Redis is too slow: a prediction is not remembered for feedback")
            return
        task = asyncio.create_task(self._write(prediction_id, entry))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, prediction_id: str, entry: Entry) -> None:
        contents = json.dumps([*entry.adapter, entry.salt.hex(), entry.leader.hex(), entry.target_risk])
        key = _prediction(prediction_id)
        try:
            async with self._redis.pipeline() as pipe:
                fields = {"entry": contents, "requested": int(entry.requested)}
                await pipe.hset(key, mapping=fields).expire(key, self._keep_s).execute()
        except RedisError as exc:
            logger.warning("Redis failed (%s): a prediction is not remembered for feedback", type(exc).__name__)

    async def find(self, prediction_id: str) -> Entry | None:
        """See Ledger."""
        found, requested = await _tried(self._redis.hmget(_prediction(prediction_id), "entry", "requested"))
        if found is None:
            return None
        name, digest, salt, leader, target_risk = json.loads(found)
        # An earlier version wrote no such field, and asked for every outcome.
        asked_for = requested != b"0"
        return Entry(Contents(name, digest), bytes.fromhex(salt), bytes.fromhex(leader), target_risk, asked_for)

    async def settle(self, prediction_id: str, entry: Entry, label: bytes) -> tuple[bytes, Tally | None]:
        """See Ledger."""
        keys = [_prediction(prediction_id)]
        if entry.target_risk is not None:
            volunteered = "" if entry.requested else ":volunteered"
            name, digest = entry.adapter
            keys.append(f"blora:outcomes:{name}:{digest}:{entry.target_risk:g}{volunteered}")
        wrong = int(label != entry.leader)
        first, *counts = await _tried(self._redis.eval(_SETTLE, len(keys), *keys, label, wrong, self._keep_s))
        return first, Tally(*map(int, counts)) if counts else None

    def forget(self, adapter: Contents) -> None:
        """Nothing: other replicas may still serve it, and what expires is forgotten anyway."""

    async def close(self) -> None:
        """See Ledger."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=_TIMEOUT_S)
        await self._redis.aclose()


def _prediction(prediction_id: str) -> str:
    return f"blora:prediction:{prediction_id}"


async def _tried(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except RedisError as exc:
        raise FeedbackUnavailableError(
            "got no answer from the store of predictions, expected one: tell it again later"
        ) from exc
