"""The client against an app that is full, slow, starting or draining."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from blora.client import AsyncClient, DeadlineError, OverloadedError, RefusedError, Retries, UnavailableError
from tests.server.fakes import TRIAGE_DIGEST, FakeEngine, Running, running

SLACK_S = 0.5


def client_of(server: Running, **options: Any) -> AsyncClient:
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False)
    options = {"retries": Retries(first_wait_s=0.02, longest_wait_s=0.05), **options}
    return AsyncClient("http://test", transport=transport, **options)


async def test_an_answer_and_an_abstention(server: Running) -> None:
    async with client_of(server) as client:
        sure = await client.predict("p=0.9", policy={"min_confidence": 0.8})
        assert (sure.answer, sure.abstained, sure.n_samples) == ("billing", False, 4)
        assert sure.adapter.digest == TRIAGE_DIGEST
        assert sure.policy is not None
        assert sure.policy.min_confidence == 0.8
        unsure = await client.predict("p=0.7", policy={"min_confidence": 0.8}, return_samples=True)
        assert (unsure.answer, unsure.abstained, unsure.top_choice) == (None, True, "billing")
        assert [reason.reason for reason in unsure.abstain_reasons] == ["low_confidence"]
        assert unsure.samples is not None
        assert len(unsure.samples) == 4


async def test_what_the_server_refuses_is_refused_with_its_words(server: Running) -> None:
    async with client_of(server) as client:
        with pytest.raises(RefusedError, match="Two choices are the same") as info:
            await client.predict("x", choices=["a", "a"])
        assert (info.value.status, info.value.code, info.value.param) == (422, "duplicate_choices", "choices")
        with pytest.raises(RefusedError) as missing:
            await client.predict("x", adapter="nobody")
        assert missing.value.code == "unknown_adapter"


async def test_a_slow_server_is_left_at_the_deadline(server: Running, engine: FakeEngine) -> None:
    engine.gate.clear()
    async with client_of(server) as client:
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            await client.predict("p=0.9", deadline_s=0.3)
        assert time.monotonic() - began < 0.3 + SLACK_S
        engine.gate.set()
        assert (await client.predict("p=0.9")).answer == "billing"


async def test_a_full_queue_is_waited_for_as_long_as_there_is_time(engine: FakeEngine) -> None:
    engine.gate.clear()
    async with running(engine, max_queue_requests=1) as server, client_of(server) as client:
        accepted = [asyncio.create_task(client.predict("p=0.9", deadline_s=60))]
        await engine.computing.wait()
        accepted.append(asyncio.create_task(client.predict("p=0.9", deadline_s=60)))
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadedError) as info:
            await client.predict("p=0.9", deadline_s=0.5)
        assert info.value.retry_after_s is not None
        patient = asyncio.create_task(client.predict("p=0.9", deadline_s=60))
        await asyncio.sleep(0.05)
        engine.gate.set()
        answers = await asyncio.gather(*accepted, patient)
    assert [prediction.answer for prediction in answers] == ["billing"] * 3


async def test_a_server_that_is_starting_is_waited_for(engine: FakeEngine) -> None:
    engine.load_gate.clear()
    async with running(engine, ready=False) as server, client_of(server, retries=Retries(None, 0.02, 0.05)) as client:
        assert not await client.ready()
        with pytest.raises(UnavailableError) as info:
            await client.predict("p=0.9", deadline_s=0.3)
        assert info.value.code == "not_ready"
        waiting = asyncio.create_task(client.predict("p=0.9"))
        await asyncio.sleep(0.1)
        engine.load_gate.set()
        assert (await waiting).answer == "billing"
        assert await client.ready()


async def test_a_server_that_goes_down_says_so_once_it_takes_no_more(server: Running) -> None:
    async with client_of(server, retries=Retries(2, 0.01)) as client:
        server.app.state.service.begin_drain()
        assert not await client.ready()
        assert (await client.predict("p=0.9")).answer == "billing"
        await server.app.state.service.stop()
        with pytest.raises(UnavailableError) as info:
            await client.predict("p=0.9")
        assert info.value.code == "draining"


async def test_a_thousand_questions_each_get_their_own_answer(server: Running) -> None:
    asked = [{"prompt": f"p={k / 1001 + 0.0005:.6f} x", "adapter": "open", "choices": ["a", "b"]} for k in range(1000)]
    async with client_of(server) as client:
        found = await client.predict_many(asked, max_in_flight=32)
    for body, outcome in zip(asked, found, strict=True):
        expected = float(str(body["prompt"]).split()[0].removeprefix("p="))
        assert not isinstance(outcome, Exception)
        assert outcome.probabilities[0].probability == pytest.approx(expected)
