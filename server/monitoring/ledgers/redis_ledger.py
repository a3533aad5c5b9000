"""A ledger in Redis: any replica can be told of any replica's prediction, and all count together."""

import asyncio
import json
import logging
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from blora.errors import ConfigError
from blora.server.errors import FeedbackUnavailableError
from blora.server.monitoring.ledgers.protocol import Contents, Entry, Settled, Tally

__all__ = ["RedisLedger"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The version of what is kept: replicas of another one neither read it nor count with it.
_PREFIX = "blora:2"
_TIMEOUT_S = 2.0
# More would not be faster, and a Redis has only so many.
_CONNECTIONS = 10
# The label and the counts together, so that no outcome is counted twice or not at all, whatever is asked again.
_SETTLE = """
local label, leader, keep_s = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local before = tonumber(redis.call('HGET', KEYS[1], 'label') or -1)
redis.call('HSET', KEYS[1], 'label', label)
redis.call('EXPIRE', KEYS[1], keep_s)
if not KEYS[2] then return {before} end
local is_wrong = label ~= leader and 1 or 0
local was_wrong = before >= 0 and before ~= leader and 1 or 0
local outcomes = redis.call('HINCRBY', KEYS[2], 'outcomes', before < 0 and 1 or 0)
local wrong = redis.call('HINCRBY', KEYS[2], 'wrong', is_wrong - was_wrong)
local cleared = redis.call('HINCRBY', KEYS[2], 'cleared', was_wrong > is_wrong and 1 or 0)
redis.call('EXPIRE', KEYS[2], keep_s)
return {before, outcomes, wrong, cleared}
"""
# Writes under way; beyond it Redis is too slow to keep up, and predictions go unremembered.
_MAX_WRITING = 1000


class RedisLedger:
    """See Ledger.

    Keys are blora:2:prediction:ID, a hash that expires, and blora:2:outcomes:NAME:DIGEST:CALIBRATION_DIGEST:RISK, three
    counts that expire once nothing has been counted for as long; outcomes that were not asked for have counts of their
    own, whose key ends in :volunteered. Answers never wait for Redis: a prediction that cannot be written is not
    remembered, and the log says so.

    Args:
        url: redis://HOST:PORT/NUMBER, or redis://USER@HOST:PORT/NUMBER.
        keep_s: seconds after which a prediction is forgotten.
        password_file: that has the password, where there is one and the address does not have it.

    Raises:
        ConfigError: if there is no password in that file, or another in the address.
    """

    def __init__(self, url: str, keep_s: float, password_file: Path | None = None) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            password=_password(url, password_file) if password_file is not None else None,
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
        contents = json.dumps(
            {
                "adapter": entry.adapter,
                "client": entry.client,
                "salt": entry.salt.hex(),
                "choices": entry.choices.hex(),
                "leader": entry.leader,
                "target_risk": entry.target_risk,
                "requested": entry.requested,
            }
        )
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
        fields = json.loads(found)
        return Entry(
            adapter=Contents(*fields["adapter"]),
            client=fields["client"],
            salt=bytes.fromhex(fields["salt"]),
            choices=bytes.fromhex(fields["choices"]),
            leader=fields["leader"],
            target_risk=fields["target_risk"],
            requested=fields["requested"],
        )

    async def settle(self, prediction_id: str, entry: Entry, label: int) -> Settled:
        """See Ledger."""
        keys = [_prediction(prediction_id)]
        if entry.target_risk is not None:
            volunteered = "" if entry.requested else ":volunteered"
            keys.append(f"{_PREFIX}:outcomes:{':'.join(entry.adapter)}:{entry.target_risk:g}{volunteered}")
        told = await _tried(self._redis.eval(_SETTLE, len(keys), *keys, label, entry.leader, self._keep_s))
        before, *counts = map(int, told)
        return Settled(None if before < 0 else before, Tally(*counts) if counts else None)

    def forget(self, adapter: Contents) -> None:
        """Nothing: other replicas may still serve it, and what expires is forgotten anyway."""

    async def close(self) -> None:
        """See Ledger."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=_TIMEOUT_S)
        await self._redis.aclose()


def _password(url: str, file: Path) -> str:
    try:
        password = file.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--feedback-redis-password-file {file} cannot be read: {exc}") from exc
    if not password:
        raise ConfigError(f"--feedback-redis-password-file {file} is empty: write the password into it")
    if urlsplit(url).password is not None:
        raise ConfigError(
            "The password of Redis is in --feedback-redis and in --feedback-redis-password-file: leave it in the file "
            "alone"
        )
    return password


def _prediction(prediction_id: str) -> str:
    return f"{_PREFIX}:prediction:{prediction_id}"


async def _tried(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except RedisError as exc:
        raise FeedbackUnavailableError(
            "The store of predictions does not answer: report the outcome again later."
        ) from exc
