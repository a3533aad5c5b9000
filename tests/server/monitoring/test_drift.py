"""Drift in a running app: unfamiliar questions are counted, a change of the questions is noticed and told."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from blora.decision.drift import Seen
from blora.decision.gate import Gate
from blora.server.errors import FeedbackUnavailableError
from blora.server.keys import line_of
from blora.training.familiarity import fit_familiarity
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, TRIAGE_DIGEST, FakeEngine, Running, handle, running

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
ONE = {"adapter": "triage"}


@pytest.fixture
async def watched() -> AsyncIterator[Running]:
    async with running(FakeEngine(handles=(GATED,))) as server:
        yield server


async def ask(server: Running, familiarities: list[float], **fields: Any) -> list[dict[str, Any]]:
    body = {"inputs": [{"prompt": f"p=0.95 f={value}"} | fields for value in familiarities]}
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

    async def counts(adapter: object, counter: str, own: Seen) -> Seen:
        told.append(own)
        return own

    monkeypatch.setattr(ledger, "count", fails)
    await ask(watched, [0.01] * 5 + [0.5] * 5)
    assert await since(watched) is None
    monkeypatch.setattr(ledger, "count", counts)
    await ask(watched, [0.5])
    assert told == [Seen(11, 5)]
