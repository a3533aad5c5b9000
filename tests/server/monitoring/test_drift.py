"""Drift in a running app: unfamiliar questions are counted, a change of the questions is noticed and told."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from blora.decision.drift import ALPHA, DriftTest, Seen
from blora.decision.gate import Gate
from blora.server.errors import FeedbackUnavailableError
from blora.server.keys import line_of
from blora.server.monitoring.build import Build
from blora.server.monitoring.drift import DriftWatch
from blora.server.monitoring.ledgers.memory import MemoryLedger
from blora.server.monitoring.ledgers.protocol import Contents, Counted
from blora.server.monitoring.metrics import ServerMetrics
from blora.training.head.familiarity import fit_familiarity
from tests.server.calibrations import calibration
from tests.server.decision_models import predicate
from tests.server.fakes import CHOICES, OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, Running, handle, running

# Unfamiliar below 3 in 100; the reference itself is not used, because the fake engine says what the familiarity is.
GATE = Gate(max_false_alarms=0.05, n_beyond=1, reference=tuple(range(99)))
STATES = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
GATED = handle(
    "triage",
    TRIAGE_DIGEST,
    choices=CHOICES,
    calibration=calibration(TRIAGE_DIGEST, gate=GATE),
    familiarity=fit_familiarity((0,), STATES, STATES).familiarity,
)
OPEN = handle("open", OPEN_DIGEST, calibration=calibration(OPEN_DIGEST, gate=GATE), familiarity=GATED.familiarity)
CONTENTS = Contents("triage", "sha256:1", "sha256:2")
ONE = {"adapter": "triage"}
NUMBERS = count()


@pytest.fixture
async def watched() -> AsyncIterator[Running]:
    async with running(FakeEngine(handles=(GATED,))) as server:
        yield server


async def ask(
    server: Running, familiarities: list[float], text: str | None = None, **fields: Any
) -> list[dict[str, Any]]:
    """Ask questions of these familiarities, about one text or about new ones."""
    prompts = [f"p=0.95 f={value} {text or f'text {next(NUMBERS)}'}" for value in familiarities]
    body = {"inputs": [{"prompt": prompt} | fields for prompt in prompts]}
    answers: list[dict[str, Any]] = (await server.client.post("/v1/predict", json=body)).json()["predictions"]
    return answers


async def since(server: Running) -> int | None:
    card: dict[str, Any] = (await server.client.get("/v1/adapters/triage")).json()
    [listed] = (await server.client.get("/v1/adapters")).json()["data"]
    assert listed["drift_since"] == card["drift_since"]
    found: int | None = card["drift_since"]
    return found


async def test_unfamiliar_questions_are_counted_and_a_drift_is_noticed(watched: Running) -> None:
    assert await watched.metric("blora_unfamiliar_total", **ONE) == 0
    assert "blora_unfamiliar_total{" in (await watched.client.get("/metrics")).text
    chance, before = random.Random(0), int(time.time())
    [familiar, unfamiliar] = await ask(watched, [0.03, 0.02])
    assert (familiar["abstained"], unfamiliar["abstained"]) == (False, True)
    await ask(watched, [round(chance.uniform(0.03, 1), 3) for _ in range(200)])
    assert await watched.metric("blora_unfamiliar_total", **ONE) == 1
    assert await watched.metric("blora_drift_wealth", **ONE) < 1
    assert await since(watched) is None
    await ask(watched, [0.01] * 20)
    assert await watched.metric("blora_unfamiliar_total", **ONE) == 21
    assert await watched.metric("blora_drift_wealth", **ONE) >= 20
    noticed = await since(watched)
    assert noticed is not None
    assert before <= noticed <= time.time()


async def test_it_is_told_since_when_even_after_the_questions_are_familiar_again(watched: Running) -> None:
    await ask(watched, [0.01] * 20)
    noticed = await since(watched)
    for _ in range(3):
        await ask(watched, [0.5] * 256)
    assert await watched.metric("blora_drift_wealth", **ONE) < 20
    assert noticed is not None
    assert await since(watched) == noticed


async def test_a_question_that_departs_from_the_calibration_is_no_evidence(watched: Running) -> None:
    await ask(watched, [0.01] * 20, seed=1, policy={"min_familiarity": 0.5})
    assert await watched.metric("blora_unfamiliar_total", **ONE) == 0
    assert await since(watched) is None


async def test_without_a_gate_nothing_is_watched() -> None:
    ungated = handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST))
    async with running(FakeEngine(handles=(ungated,))) as server:
        await ask(server, [0.01] * 20)
        text = (await server.client.get("/metrics")).text
        assert "blora_unfamiliar_total{" not in text
        assert "blora_drift_wealth{" not in text
        assert await since(server) is None


async def test_a_successor_starts_without_evidence(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(line_of("ops", "admin", "key") + "\n")
    async with running(FakeEngine(handles=(GATED,)), api_keys=tmp_path / "keys", adapter_root=tmp_path) as server:
        server.client.headers["authorization"] = "Bearer key"
        await ask(server, [0.01] * 20)
        assert await since(server) is not None
        await server.client.delete("/v1/adapters/triage")
        text = (await server.client.get("/metrics")).text
        assert "blora_unfamiliar_total{" not in text
        assert "blora_drift_wealth{" not in text
        predictor = server.app.state.service.predictor()
        assert not predictor.feedback._drift._watched
        predictor.registry.add(GATED)
        server.app.state.service.metrics.adapter_loaded(GATED)
        await ask(server, [0.5])
        assert await since(server) is None


async def test_counts_that_the_ledger_did_not_take_are_handed_on_later(
    watched: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = watched.app.state.service.predictor().feedback._ledger
    told: list[Seen] = []

    async def fails(adapter: object, counter: str, own: Seen) -> Seen:
        await asyncio.sleep(0)
        raise FeedbackUnavailableError("away")

    async def counts(adapter: object, counter: str, own: Seen) -> Counted:
        told.append(own)
        return Counted({counter: own}, None)

    monkeypatch.setattr(ledger, "count", fails)
    await ask(watched, [0.01] * 5 + [0.5] * 5)
    assert await since(watched) is None
    monkeypatch.setattr(ledger, "count", counts)
    await ask(watched, [0.5])
    assert told == [Seen(11, 5)]


async def test_answers_given_while_the_ledger_counts_are_handed_on_next(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, free, told = MemoryLedger(1), asyncio.Event(), list[Seen]()

    async def counts(adapter: object, counter: str, own: Seen) -> Counted:
        told.append(own)
        await free.wait()
        return Counted({counter: own}, None)

    monkeypatch.setattr(ledger, "count", counts)
    watched = watch(ledger)
    for _ in range(3):
        watched.answered(CONTENTS, GATE, 1.0, next(NUMBERS))
        await asyncio.sleep(0)
    free.set()
    await watched.close()
    assert told == [Seen(1, 0), Seen(3, 0)]


# What counts once


def watch(ledger: MemoryLedger) -> DriftWatch:
    return DriftWatch(ServerMetrics(Build.current()), ledger)


async def answered(watched: DriftWatch, familiarities: list[float], n_questions: int = 1) -> None:
    """Count answers to questions about new texts, each of which is asked about several times in a request."""
    for familiarity in familiarities:
        text = next(NUMBERS)
        for _ in range(n_questions):
            watched.answered(CONTENTS, GATE, familiarity, text)
        await asyncio.sleep(0)
    await watched.close()


async def test_streams_of_eight_questions_about_each_text_are_accused_once_in_twenty() -> None:
    chance, n, accused = random.Random(0), 200, 0
    for _ in range(n):
        watched = watch(MemoryLedger(1))
        familiarities = [0.0 if chance.random() < GATE.max_false_alarms else 1.0 for _ in range(300)]
        await answered(watched, familiarities, n_questions=8)
        accused += watched.since(CONTENTS) is not None
    assert accused <= n * ALPHA + 3 * math.sqrt(n * ALPHA * (1 - ALPHA))


async def test_one_rare_text_asked_again_and_again_is_no_drift(watched: Running) -> None:
    for _ in range(3):
        await ask(watched, [0.01] * 10, "of a health probe")
        await ask(watched, [0.01] * 10, " of a  health probe ")
    assert await watched.metric("blora_unfamiliar_total", **ONE) == 60
    assert await since(watched) is None
    await ask(watched, [0.01] * 20)
    assert await since(watched) is not None


async def test_a_chat_is_one_text_and_equal_to_a_prompt_where_it_has_one_turn() -> None:
    both = calibration(TRIAGE_DIGEST, gate=GATE, forms=("messages", "prompt"))
    chats = handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=both, familiarity=GATED.familiarity)
    turns = [{"role": "user", "content": f"p=0.95 f=0.5 text {k}"} for k in range(3)]
    async with running(FakeEngine(handles=(chats,))) as server:
        inputs: list[dict[str, Any]] = [{"messages": [turn]} for turn in turns]
        inputs += [{"prompt": turn["content"]} for turn in turns]
        inputs += [{"messages": [turns[0], turn]} for turn in turns[1:]]
        assert (await server.client.post("/v1/predict", json={"inputs": inputs * 2})).status_code == 200
        [watched] = server.app.state.service.predictor().feedback._drift._watched.values()
        assert watched.own == Seen(3 + 2, 0)


async def test_the_texts_remembered_are_the_4096_asked_most_recently() -> None:
    watched = watch(MemoryLedger(1))
    for texts in (range(4096), [0], [4096], [0, 1]):  # 0 was asked again before 4096, which took the place of 1
        for text in texts:
            watched.answered(CONTENTS, GATE, 1.0, text)
    assert watched._watched[CONTENTS].own == Seen(4098, 0)
    await watched.close()


async def test_one_question_of_a_request_counts_drawn_at_random() -> None:
    async with running(FakeEngine(handles=(OPEN,)), default_adapter="open") as server:
        questions = [predicate(instructions=f"f={value} Is it so?") for value in (0.5, 0.01)]
        for k in range(100):
            body = {"model": "open", "input": f"text {k}", "questions": questions}
            assert (await server.client.post("/v1/decisions", json=body)).status_code == 200
        assert await server.metric("blora_unfamiliar_total", adapter="open") == 100
        [watched] = server.app.state.service.predictor().feedback._drift._watched.values()
        assert watched.own.n_answers == 100
        assert 20 < watched.own.n_unfamiliar < 80


async def test_a_familiarity_at_the_gate_up_to_rounding_is_familiar_as_under_a_policy() -> None:
    watched = watch(MemoryLedger(1))
    for off in (0.0, -5e-7, -2e-6):
        watched.answered(CONTENTS, GATE, GATE.min_familiarity + off, next(NUMBERS))
    assert watched._watched[CONTENTS].own == Seen(3, 1)
    await watched.close()


# Replicas


async def test_a_replica_that_starts_later_says_since_when() -> None:
    ledger = MemoryLedger(1)
    first, late = watch(ledger), watch(ledger)
    await answered(first, [0.0] * 20)
    assert first.since(CONTENTS) is not None
    ledger._noticed[CONTENTS] = 1_000  # long ago
    await answered(late, [1.0])
    assert late.since(CONTENTS) == 1_000


async def test_the_earliest_time_that_a_replica_or_the_ledger_knows_stands() -> None:
    ledger = MemoryLedger(1)
    watched = watch(ledger)
    await answered(watched, [0.0] * 20)
    first = watched.since(CONTENTS)
    assert first is not None
    ledger._noticed[CONTENTS] = first + 5_000  # as another replica noticed after the ledger had lost everything
    await answered(watched, [1.0])
    assert watched.since(CONTENTS) == ledger._noticed[CONTENTS] == first
    assert await ledger.notice(CONTENTS, first + 1) == first
    assert await ledger.notice(CONTENTS, first - 1) == ledger._noticed[CONTENTS] == first - 1


async def test_counts_that_the_ledger_lost_are_no_evidence_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, now = MemoryLedger(1), int(time.time())
    others = [{"other": Seen(200, 9)}, {}, {"other": Seen(100, 5)}, {"other": Seen(210, 9)}]

    async def counts(adapter: object, counter: str, own: Seen) -> Counted:
        return Counted({counter: own} | others[own.n_answers - 1], None)

    monkeypatch.setattr(ledger, "count", counts)
    watched, expected = watch(ledger), DriftTest(GATE.max_false_alarms)
    for total in (201, 202, 203, 214):
        await answered(watched, [1.0])
        expected.observe(Seen(total, 9))
        assert watched._watched[CONTENTS].test.wealth == expected.wealth
    watched._watched[CONTENTS].since = now - 5
    others.append({})
    await answered(watched, [1.0])
    assert ledger._noticed == {CONTENTS: now - 5}  # stored again
