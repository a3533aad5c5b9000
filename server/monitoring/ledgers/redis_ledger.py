"""A ledger in Redis, shared by all replicas."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, RedisError

from blora.decision.drift import Seen
from blora.errors import ConfigError
from blora.server.errors import FeedbackUnavailableError
from blora.server.monitoring.ledgers.protocol import Contents, Counted, Entry, Settled, Tally
from blora.server.monitoring.logs import ThrottledLogger

__all__ = ["RedisLedger"]

logger = logging.getLogger(__name__)

# Version of the stored format: replicas with another version neither read nor count these entries.
_PREFIX = "blora:2"
_TIMEOUT_S = 2.0
# Seconds for the last predictions to be written.
_CLOSE_S = 1.0
# Most connections; more would not be faster, and Redis limits them.
_CONNECTIONS = 10
# Stores a prediction, and marks it if an earlier one stands for its text, which is kept as long. Repeating it changes
# nothing.
_REMEMBER = """
redis.call('HSET', KEYS[1], 'entry', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
if not KEYS[2] then return 0 end
local first = redis.call('GET', KEYS[2]) or KEYS[1]
redis.call('SET', KEYS[2], first, 'EX', ARGV[2])
if first == KEYS[1] then return 0 end
redis.call('HSET', KEYS[1], 'repeats', 1)
return 1
"""
# Sets the label and updates the counts in one transaction, so that a repeated call counts an outcome exactly once.
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
return {before, outcomes, wrong, cleared, tonumber(redis.call('HGET', KEYS[2], 'rejected_at') or -1)}
"""
# Stores a number of corrections unless a larger one is stored.
_REJECT = """
local latest = math.max(tonumber(ARGV[1]), tonumber(redis.call('HGET', KEYS[1], 'rejected_at') or -1))
redis.call('HSET', KEYS[1], 'rejected_at', latest)
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
# Stores the counts of a counter, drops the counters that have counted nothing for longer than a prediction is kept, and
# returns the other fields.
_COUNT = """
local keep_s, now = tonumber(ARGV[3]), tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. now)
redis.call('EXPIRE', KEYS[1], keep_s)
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local at = fields[i + 1]:match(' (%d+)$')
  if at and now - at > keep_s then redis.call('HDEL', KEYS[1], fields[i]) end
end
return redis.call('HGETALL', KEYS[1])
"""
# Stores a time unless an earlier one is stored, and returns the earlier one.
_NOTICE = """
local earliest = math.min(tonumber(ARGV[1]), tonumber(redis.call('HGET', KEYS[1], 'noticed') or ARGV[1]))
redis.call('HSET', KEYS[1], 'noticed', earliest)
return earliest
"""
# Most predictions that wait to be written; beyond them Redis is too slow, and predictions are not stored.
_MAX_WAITING = 1000
# Failures of Redis, and of redis-py or of the functions below on replies of something else at its address.
_FAILURES = (RedisError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Unwritten(NamedTuple):
    """A prediction that is not in Redis yet.

    Attributes:
        entry: the prediction.
        text: hash of the text that it stands for, if any.
        stored: resolves to the prediction as it is stored; None if it is not.
    """

    entry: Entry
    text: bytes | None
    stored: asyncio.Future[Entry | None]


class RedisLedger:
    """Ledger in Redis.

    Keys are blora:2:prediction:ID, a hash that expires after `keep_s`; blora:2:text:HASH, the first prediction about a
    text under a promise, which expires `keep_s` after the last one; and
    blora:2:outcomes:NAME:DIGEST:CALIBRATION_DIGEST:RISK, the counts of a tally, which expire `keep_s` after they last
    changed or were looked at. The counts of unfamiliar questions, blora:2:drift:NAME:DIGEST:CALIBRATION_DIGEST, hold
    what each counter has counted, so that writing twice changes nothing, and when; each counter's expire `keep_s` after
    their last change, so that the counters of ended processes do not add up. Answers never wait for Redis: a prediction
    that cannot be written is dropped with a log line.

    Args:
        url: redis://HOST:PORT/NUMBER, or redis://USER@HOST:PORT/NUMBER.
        keep_s: seconds after which a prediction is forgotten.
        password_file: file of the password, if the address does not contain one.

    Raises:
        ConfigError: if the address cannot be read, the file contains no password, or the address contains one too.
    """

    def __init__(self, url: str, keep_s: float, password_file: Path | None = None) -> None:
        password = _password(url, password_file) if password_file is not None else None
        try:
            _check_database(url)
            pool = BlockingConnectionPool.from_url(
                url,
                password=password,
                max_connections=_CONNECTIONS,
                timeout=_TIMEOUT_S,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                # One retry, because Redis may have closed a kept-alive connection.
                retry=Retry(NoBackoff(), retries=1),
                # After a failover a kept connection leads to the old primary, and a new one to the present primary.
                retry_on_error=[ReadOnlyError],
            )
        except ValueError as exc:  # its message may contain a part of the password
            raise ConfigError(
                "--feedback-redis cannot be read: write redis://HOST:6379/0, and a password in "
                "--feedback-redis-password-file or percent-encoded"
            ) from exc
        self._redis: Any = Redis.from_pool(pool)
        self._keep_s = max(1, int(keep_s))
        # Predictions by key: those that wait to be written, and those that are being written.
        self._waiting: dict[str, _Unwritten] = {}
        self._in_flight: dict[str, _Unwritten] = {}
        self._writing: asyncio.Task[None] | None = None
        self._failures = ThrottledLogger(logger)

    def remember(
        self, prediction_id: str, entry: Entry, done: Callable[[Entry | None], None], text: bytes | None
    ) -> None:
        """Implement Ledger."""
        if len(self._waiting) >= _MAX_WAITING:
            self._failures.warning("Redis is too slow: a prediction is not remembered for feedback")
            done(None)
            return
        stored: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        stored.add_done_callback(lambda future: done(future.result()))
        self._waiting[_prediction(prediction_id)] = _Unwritten(entry, text, stored)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Write the predictions that wait, all of them in one transaction, until none waits."""
        stored: list[Entry | None]
        while self._waiting:
            self._in_flight, self._waiting = self._waiting, {}
            try:
                async with self._redis.pipeline() as pipe:
                    for key, one in self._in_flight.items():
                        keys = [key] if one.text is None else [key, _text(one.text)]
                        pipe.eval(_REMEMBER, len(keys), *keys, _json(one.entry), self._keep_s)
                    told = zip(self._in_flight.values(), await pipe.execute(), strict=True)
                    stored = [_as_stored(one.entry, repeats) for one, repeats in told]
            except _FAILURES as exc:
                stored = [None] * len(self._in_flight)
                self._failures.warning(
                    f"Redis failed ({type(exc).__name__}): {len(self._in_flight)} predictions are not remembered for "
                    "feedback"
                )
            finally:
                written, self._in_flight = self._in_flight, {}
            for one, entry in zip(written.values(), stored, strict=True):
                one.stored.set_result(entry)

    async def find(self, prediction_id: str) -> Entry | None:
        """Implement Ledger; a prediction that this replica is about to write is waited for."""
        key = _prediction(prediction_id)
        if (unwritten := self._in_flight.get(key) or self._waiting.get(key)) is not None:
            await asyncio.wait([unwritten.stored], timeout=_TIMEOUT_S)
        with _failures_told():
            found, repeats = await self._redis.hmget(key, "entry", "repeats")
            return _as_stored(_entry(found), repeats or 0) if found is not None else None

    async def settle(self, prediction_id: str, entry: Entry, label: int) -> Settled:
        """Implement Ledger."""
        keys = [_prediction(prediction_id)]
        if entry.target_risk is not None and entry.requested:
            keys.append(_outcomes(entry.adapter, entry.target_risk))
        with _failures_told():
            told = await self._redis.eval(_SETTLE, len(keys), *keys, label, entry.leader, self._keep_s)
            before, *counts = map(int, told)
            return Settled(None if before < 0 else before, Tally(*counts) if counts else None)

    async def tally(self, adapter: Contents, target_risk: float) -> Tally | None:
        """Implement Ledger; counts that are looked at expire later, after the predictions that were stored before.

        A Redis that runs out of memory drops first what expires first.
        """
        key, fields = _outcomes(adapter, target_risk), ("outcomes", "wrong", "cleared", "rejected_at")
        with _failures_told():
            async with self._redis.pipeline() as pipe:
                counts, _ = await pipe.hmget(key, fields).expire(key, self._keep_s).execute()
            return Tally(*(-1 if count is None else int(count) for count in counts)) if counts[0] is not None else None

    async def reject(self, adapter: Contents, target_risk: float, n_cleared: int) -> None:
        """Implement Ledger."""
        with _failures_told():
            await self._redis.eval(_REJECT, 1, _outcomes(adapter, target_risk), n_cleared, self._keep_s)

    async def count(self, adapter: Contents, counter: str, own: Seen) -> Counted:
        """Implement Ledger."""
        counts = f"{own.n_answers} {own.n_unfamiliar}"
        with _failures_told():
            kept = await self._redis.eval(_COUNT, 1, _drift(adapter), f"counter:{counter}", counts, self._keep_s)
            fields = dict(zip(kept[::2], kept[1::2], strict=True))
            noticed = fields.pop(b"noticed", None)
            counters = {name.decode(): Seen(*map(int, value.split()[:2])) for name, value in fields.items()}
            return Counted(counters, int(noticed) if noticed is not None else None)

    async def notice(self, adapter: Contents, at: int) -> int:
        """Implement Ledger."""
        with _failures_told():
            return int(await self._redis.eval(_NOTICE, 1, _drift(adapter), at))

    def forget(self, adapter: Contents) -> None:
        """Do nothing: other replicas may still serve the adapter, and its entries expire."""

    async def close(self) -> None:
        """Implement Ledger."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_CLOSE_S)
        await self._redis.aclose()


def _check_database(url: str) -> None:
    """Raise ValueError if an address has a database that is no number, for which redis-py takes number 0."""
    parts = urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch("/?[0-9]*/?", parts.path):
        raise ValueError(f"got database {parts.path}, expected a number")


def _password(url: str, file: Path) -> str:
    try:
        password = file.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--feedback-redis-password-file {file} cannot be read: {exc}") from exc
    if not password:
        raise ConfigError(f"--feedback-redis-password-file {file} is empty: write the password into it")
    if urlsplit(url).password is not None:
        raise ConfigError(
            "The password of Redis is in both --feedback-redis and --feedback-redis-password-file: remove it from the "
            "address"
        )
    return password


def _json(entry: Entry) -> str:
    """Return an entry as text, which `_entry` reads."""
    labels = {"labels": entry.labels.hex()} if entry.labels else {}
    return json.dumps(
        {
            "adapter": entry.adapter,
            "client": entry.client,
            "salt": entry.salt.hex(),
            "choices": entry.choices.hex(),
            "leader": entry.leader,
            "target_risk": entry.target_risk,
            "requested": entry.requested,
            **labels,
        }
    )


def _entry(text: bytes) -> Entry:
    """Return the entry that a text holds."""
    fields = json.loads(text)
    return Entry(
        adapter=Contents(*fields["adapter"]),
        client=fields["client"],
        salt=bytes.fromhex(fields["salt"]),
        choices=bytes.fromhex(fields["choices"]),
        leader=fields["leader"],
        target_risk=fields["target_risk"],
        requested=fields["requested"],
        labels=bytes.fromhex(fields.get("labels", "")),
    )


def _as_stored(entry: Entry, repeats: bytes | int) -> Entry:
    """Return an entry; it is not requested if it repeats a text for which an earlier one stands."""
    return replace(entry, requested=False) if int(repeats) else entry


def _outcomes(adapter: Contents, target_risk: float) -> str:
    return f"{_PREFIX}:outcomes:{':'.join(adapter)}:{target_risk:g}"


def _drift(adapter: Contents) -> str:
    return f"{_PREFIX}:drift:{':'.join(adapter)}"


def _text(text: bytes) -> str:
    return f"{_PREFIX}:text:{text.hex()}"


def _prediction(prediction_id: str) -> str:
    return f"{_PREFIX}:prediction:{prediction_id}"


@contextmanager
def _failures_told() -> Iterator[None]:
    """Raise the server's error for failures of Redis and replies that cannot be read."""
    try:
        yield
    except _FAILURES as exc:
        raise FeedbackUnavailableError(
            f"The store of predictions fails ({type(exc).__name__}): report the outcome again later."
        ) from exc
