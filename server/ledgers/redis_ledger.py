"""A ledger in Redis: any replica can be told of any replica's prediction, and all count together."""

import asyncio
import json
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from server.errors import FeedbackUnavailableError
from server.ledgers.protocol import Contents, Entry, Tally

__all__ = ["RedisLedger"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TIMEOUT_S = 2.0
# Writes under way; beyond it Redis is too slow to keep up, and predictions go unremembered.
_MAX_WRITING = 1000


class RedisLedger:
    """See Ledger.

    Keys are blora:prediction:ID, a hash that expires, and blora:outcomes:NAME:DIGEST:RISK, two counts that expire once
    nothing has been counted for as long. Answers never wait for Redis: a prediction that cannot be written is not
    remembered, and the log says so.

    Args:
        url: redis://HOST:PORT/NUMBER.
        keep_s: seconds after which a prediction is forgotten.
    """

    def __init__(self, url: str, keep_s: float) -> None:
        # Once more, for a connection that was kept may have been closed at the other end since.
        again = Retry(NoBackoff(), retries=1)
        self._redis: Any = Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=again
        )
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
                await pipe.hset(key, "entry", contents).expire(key, self._keep_s).execute()
        except RedisError as exc:
            logger.warning("Redis failed (%s): a prediction is not remembered for feedback", type(exc).__name__)

    async def find(self, prediction_id: str) -> Entry | None:
        """See Ledger."""
        found = await _tried(self._redis.hget(_prediction(prediction_id), "entry"))
        if found is None:
            return None
        name, digest, salt, leader, target_risk = json.loads(found)
        return Entry(Contents(name, digest), bytes.fromhex(salt), bytes.fromhex(leader), target_risk)

    async def settle(self, prediction_id: str, label: bytes) -> tuple[bytes, bool]:
        """See Ledger."""
        key = _prediction(prediction_id)
        async with self._redis.pipeline() as pipe:
            pipe.hsetnx(key, "label", label).hget(key, "label").expire(key, self._keep_s)
            is_first, first, _ = await _tried(pipe.execute())
        return first, bool(is_first)

    async def count(self, adapter: Contents, target_risk: float, *, wrong: bool) -> Tally:
        """See Ledger."""
        key = f"blora:outcomes:{adapter.name}:{adapter.digest}:{target_risk:g}"
        async with self._redis.pipeline() as pipe:
            pipe.hincrby(key, "outcomes", 1).hincrby(key, "wrong", int(wrong)).expire(key, self._keep_s)
            n_outcomes, n_wrong, _ = await _tried(pipe.execute())
        return Tally(n_outcomes, n_wrong)

    def forget(self, adapter: Contents) -> None:
        """Nothing: other replicas may still serve it, and what expires is forgotten anyway."""

    async def close(self) -> None:
        """See Ledger."""
        await asyncio.gather(*self._writing)
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
