"""Outcomes reported at the same time, whose replies from the ledger come in another order or after a loss."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from blora.server.monitoring.ledgers.protocol import Settled, Tally
from tests.server.fakes import FakeEngine, Running, running
from tests.server.monitoring.test_feedback import CALIBRATED, TARGET, ask, tell


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running(FakeEngine(handles=(CALIBRATED,))) as up:
        yield up


def ledger_of(server: Running) -> Any:
    return server.app.state.service.predictor().feedback._ledger


async def test_corrections_whose_replies_overtake_each_other_show_the_latest_counts(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [await ask(server) for _ in range(8)]
    for answer in answers:
        await tell(server, answer["id"], "account")
    assert await server.metric("blora_promise_broken", **TARGET) == 1
    ledger, settled = ledger_of(server), list[Settled]()
    settle = ledger.settle

    async def overtaken(*args: Any) -> Settled:
        reply: Settled = await settle(*args)
        settled.append(reply)
        await asyncio.sleep(0.05 * (8 - len(settled)))
        return reply

    monkeypatch.setattr(ledger, "settle", overtaken)
    await asyncio.gather(*(tell(server, answer["id"], "billing") for answer in answers[:7]))
    assert [reply.tally.n_wrong for reply in settled if reply.tally] == [7, 6, 5, 4, 3, 2, 1]
    assert await server.metric("blora_realised_risk", **TARGET) == 1 / 8
    assert await server.metric("blora_promise_broken", **TARGET) == 0


async def test_counts_read_before_a_correction_are_not_shown_after_it(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    feedback, ledger = server.app.state.service.predictor().feedback, ledger_of(server)
    answers = [await ask(server) for _ in range(2)]
    for answer in answers:
        await tell(server, answer["id"], "account")
    tally, read, reply = ledger.tally, asyncio.Event(), asyncio.Event()

    async def late(*key: Any) -> Tally | None:
        found: Tally | None = await tally(*key)
        read.set()
        await reply.wait()
        return found

    monkeypatch.setattr(ledger, "tally", late)
    [adapter] = feedback._looking
    looking = asyncio.create_task(feedback._look(adapter, [0.05]))
    await read.wait()
    await tell(server, answers[0]["id"], "billing")
    reply.set()
    await asyncio.wait({looking}, timeout=0.1)  # then it pauses
    looking.cancel()
    assert await server.metric("blora_realised_risk", **TARGET) == 0.5


async def test_counts_after_a_loss_of_the_ledger_are_shown_at_once(server: Running) -> None:
    for label in ("account", "billing"):
        await tell(server, (await ask(server))["id"], label)
    ledger_of(server)._tallies.clear()
    await tell(server, (await ask(server))["id"], "billing")
    assert await server.metric("blora_realised_risk", **TARGET) == 0
