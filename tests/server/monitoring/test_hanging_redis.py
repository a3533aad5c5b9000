"""A Redis that takes connections and says nothing: the end of the server does not wait long for it."""

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest

from blora.server.monitoring.build import Build
from blora.server.monitoring.feedback import Feedback
from blora.server.monitoring.ledgers.redis_ledger import RedisLedger
from blora.server.monitoring.metrics import ServerMetrics
from blora.server.monitoring.recent_texts import AskedText
from tests.server.fakes import CHOICES
from tests.server.monitoring.test_drift import GATED


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


async def test_the_end_waits_two_seconds_for_what_is_being_looked_up_counted_and_written(port: int) -> None:
    ledger = RedisLedger(f"redis://127.0.0.1:{port}/0", 1000)
    feedback = Feedback(ServerMetrics(Build.current()), lambda name: GATED, ledger)
    feedback.watch(GATED)
    await asyncio.sleep(0.1)
    about = AskedText("x")
    feedback.predicted(
        GATED,
        "pred_1",
        CHOICES,
        text=about,
        leader=0,
        client=None,
        target_risk=0.05,
        answered=True,
        familiarity=0.5,
        labels={},
    )
    await asyncio.sleep(0.1)
    started = time.perf_counter()
    await feedback.close()
    assert time.perf_counter() - started < 3
