"""Checkpoints of an engine: it stops when told to, waits while another run goes first, and gives the same numbers."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from blora.config import SamplingConfig
from blora.decision.abstention import Policy
from blora.server.engines.protocol import Job, Outcome, Stop
from blora.server.scheduling.control import AbandonedError, Control
from tests.server.engines.asking import Asking, loaded, settings, write_adapter

LONG = "the same long beginning of every prompt here, and then " + "x" * 20


class Counting:
    """Control that counts checkpoints; after a number of them no result is wanted any more."""

    def __init__(self, enough: int | None = None) -> None:
        self.n_seen, self.enough = 0, enough
        self.control = Control(self._wants)

    def _wants(self, payload: object) -> bool:
        self.n_seen += 1
        return self.enough is None or self.n_seen < self.enough


async def n_checkpoints(asking: Asking, job: Job) -> int:
    seen = Counting()
    await asking.run([job], seen.control)
    return seen.n_seen


async def test_a_forward_pass_has_checkpoints_within_each_layer(asking: Asking) -> None:
    n_layers = len(asking.engine._loaded_base().model.get_decoder().layers)
    assert await n_checkpoints(asking, await asking.job("why")) >= 4 * n_layers


async def test_draws_of_a_request_are_made_between_checkpoints(asking: Asking) -> None:
    ready, fresh = [await n_checkpoints(asking, await asking.job("why", seed=seed)) for seed in (None, 9)]
    assert fresh >= ready + 2 * len(asking.one.config.modules)


async def test_draws_in_several_passes_have_checkpoints_in_each(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await asking.job("why")
    together = await n_checkpoints(asking, job)
    one_draw = asking.engine._settings.model_copy(update={"max_batch_tokens": job.row.n_tokens})
    monkeypatch.setattr(asking.engine, "_settings", one_draw)
    assert await n_checkpoints(asking, job) > 3 * together


async def test_what_nobody_waits_for_stops_anywhere_and_the_next_run_is_right(asking: Asking) -> None:
    jobs = [await asking.job(LONG + end) for end in "ab"]
    expected = await asking.run(jobs)
    asking.engine._loaded_prefixes().clear()
    asking.engine._loaded_prefixes()._last.clear()
    stopped = 0
    for enough in range(1, 60, 2):
        try:
            await asking.run(jobs, Counting(enough).control)
        except AbandonedError:
            stopped += 1
    assert stopped > 5
    for probs, alone in zip(await asking.run(jobs), expected, strict=True):
        assert torch.allclose(probs, alone, atol=1e-5)


async def parked_at(
    asking: Asking, jobs: list[Job], place: int, meanwhile: Callable[[], "asyncio.Future[list[torch.Tensor]]"]
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Return the results of a run that waits at its n-th checkpoint while another one runs, and of that other run."""
    seen, waits = 0, threading.Event()

    def wants(payload: object) -> bool:
        nonlocal seen
        seen += 1
        if seen == place:
            control.park()
        return True

    control = Control(wants, waits.set)
    running = asyncio.create_task(asking.run(jobs, control))
    while not waits.is_set() and not running.done():
        await asyncio.sleep(0.001)
    found = await meanwhile()
    control.go_on()
    return list(await running), list(found)


@pytest.mark.parametrize("place", [1, 2, 5, 9, 14, 20, 27, 35, 44, 54, 65, 77, 90])
async def test_a_run_that_waits_and_those_that_go_first_get_their_own_numbers(asking: Asking, place: int) -> None:
    """Both runs compute the same prefix for the first time under one adapter; a further job uses another adapter."""
    first = [await asking.job(LONG + end) for end in "ab"]
    then = [await asking.job(LONG + end) for end in "cd"] + [await asking.job("why", adapter="two", seed=3)]
    expected = [await asking.run([job]) for job in (*first, *then)]
    asking.engine._loaded_prefixes().clear()
    asking.engine._loaded_prefixes()._last.clear()
    waited, went = await parked_at(asking, first, place, lambda: asyncio.ensure_future(asking.run(then)))
    for probs, [alone] in zip([*waited, *went], expected, strict=True):
        assert probs is not None
        assert torch.allclose(probs, alone, atol=1e-5)


async def test_an_adapter_that_is_forgotten_while_its_beginning_is_read_leaves_nothing(asking: Asking) -> None:
    jobs = [await asking.job(LONG + end) for end in "ab"]
    prefixes = asking.engine._loaded_prefixes()
    digest = asking.one.digest

    async def forget() -> list[torch.Tensor]:
        prefixes.forget(digest)
        return []

    await parked_at(asking, jobs, 6, lambda: asyncio.ensure_future(forget()))
    assert not any(owner == digest for owner, _ in prefixes._kept)


async def test_between_looks_what_is_settled_is_given_and_what_nobody_wants_is_dropped(asking: Asking) -> None:
    never = Stop(Policy(min_confidence=0.5), 1e-9)  # nothing is settled before the last draw
    at_once = Stop(Policy(min_confidence=1e-6), 0.5)
    asked = (("kept", never), ("left", never), ("quick", at_once))
    jobs = [await asking.job(question, n_samples=16, stop=stop) for question, stop in asked]
    _, left, quick = jobs
    dropped: list[object] = []
    finished: list[object] = []
    control = Control(
        lambda payload: payload is not left,
        finished=lambda payload, result: finished.append(payload),
        dropped=dropped.append,
    )
    found = await asking.run(jobs, control)
    assert dropped == [left]
    assert len(found[1]) < len(found[0]) == 16
    if len(found[2]) < 16:
        assert finished == [quick]


async def test_an_answer_that_is_given_early_tells_its_own_clients_cached_tokens(folder: Path) -> None:
    write_adapter(folder / "many", folder / "tiny", seed=1, sampling=SamplingConfig(n_samples=16, seed=7))
    never, at_once = Stop(Policy(min_confidence=0.5), 1e-9), Stop(Policy(min_confidence=1e-6), 0.5)
    finished: dict[str | None, Outcome] = {}

    def note(payload: Any, result: Any) -> None:
        finished[payload.client] = result

    async with loaded(settings(folder, "many")) as (engine, state):
        asking = Asking(engine, state)

        async def job(end: str, client: str, stop: Stop) -> Job:
            return replace(await asking.job(LONG + end, adapter="many", n_samples=16, stop=stop), client=client)

        await engine.run([await job(end, "regular", never) for end in "ab"])
        asked = (("c", "regular", at_once), ("d", "newcomer", at_once), ("e", "newcomer", never))
        await engine.run([await job(*each) for each in asked], Control(finished=note))
    assert finished["regular"].cached_tokens > 0
    assert finished["newcomer"].cached_tokens == 0
