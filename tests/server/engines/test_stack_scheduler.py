"""Tasks that share one thread: one waits in the middle of its work while the thread computes others."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial

import pytest
import torch

from blora.server.engines.stack_scheduler import StackScheduler
from blora.server.scheduling.control import AbandonedError, Control


@pytest.fixture
async def scheduler() -> AsyncIterator[StackScheduler]:
    made = StackScheduler(ThreadPoolExecutor(1, "compute"))
    yield made
    made.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def steps(scheduler: StackScheduler, control: Control, seen: list[str], name: str, until: threading.Event) -> str:
    """Pass checkpoints until told to end."""
    while not until.wait(0.001):
        seen.append(name)
        scheduler.checkpoint(control)
    return threading.current_thread().name


async def test_work_that_waits_lets_other_work_have_its_thread(scheduler: StackScheduler) -> None:
    parked, end, seen = threading.Event(), threading.Event(), list[str]()
    control = Control(parked=parked.set)
    waiting = asyncio.create_task(scheduler.run(partial(steps, scheduler, control, seen, "waits", end)))
    await until(lambda: "waits" in seen)
    control.park()
    await until(parked.is_set)
    n_steps = len(seen)
    names = [await scheduler.run(lambda: threading.current_thread().name) for _ in range(3)]
    assert len(seen) == n_steps
    control.go_on()
    await until(lambda: len(seen) > n_steps)
    end.set()
    assert {*names, await waiting} == {"compute_0"}


async def test_those_that_wait_go_on_in_any_order(scheduler: StackScheduler) -> None:
    seen: list[str] = []
    parked: list[str] = []
    works = {name: (Control(parked=partial(parked.append, name)), threading.Event()) for name in "abc"}
    running = {}
    for name, (control, end) in works.items():
        running[name] = asyncio.create_task(scheduler.run(partial(steps, scheduler, control, seen, name, end)))
        await until(lambda name=name: name in seen)  # type: ignore[misc]
        control.park()
    await until(lambda: len(parked) == len(works))
    for name in "bac":
        control, end = works[name]
        seen.clear()
        control.go_on()
        await until(lambda name=name: name in seen)  # type: ignore[misc]
        end.set()
        await running[name]
        assert set(seen) == {name}


async def test_work_gives_way_to_what_is_queued_without_being_asked_to_wait(scheduler: StackScheduler) -> None:
    end, seen = threading.Event(), list[str]()
    long = asyncio.create_task(scheduler.run(partial(steps, scheduler, Control(), seen, "long", end)))
    await until(lambda: "long" in seen)
    assert await scheduler.run(lambda: "short") == "short"
    assert not long.done()
    end.set()
    await long


async def test_each_stack_has_its_own_context_and_all_of_them_no_gradients(scheduler: StackScheduler) -> None:
    name: ContextVar[str] = ContextVar("name", default="nobody")
    found: list[tuple[str, str, bool]] = []

    def work(mine: str, control: Control, end: threading.Event) -> None:
        name.set(mine)
        with torch.inference_mode():
            while not end.wait(0.001):
                scheduler.checkpoint(control)
                found.append((mine, name.get(), torch.is_inference_mode_enabled()))
        scheduler.checkpoint(control)
        found.append((mine, name.get(), torch.is_inference_mode_enabled()))

    a, b = (Control(), threading.Event()), (Control(), threading.Event())
    first = asyncio.create_task(scheduler.run(partial(work, "a", *a)))
    await until(lambda: bool(found))
    a[0].park()
    second = asyncio.create_task(scheduler.run(partial(work, "b", *b)))
    await until(lambda: found[-1][0] == "b")
    b[0].park()
    a[1].set()  # the first to enter the mode is the first to leave it
    a[0].go_on()
    await first
    b[1].set()
    b[0].go_on()
    await second
    assert all(mine == its and inference for mine, its, inference in found)
    assert await scheduler.run(lambda: name.get()) == "nobody"


async def test_work_that_is_stopped_while_it_waits_raises_where_it_is_awaited(scheduler: StackScheduler) -> None:
    wanted, seen = True, list[str]()
    control = Control(wants=lambda payload: wanted)
    stopped = asyncio.create_task(scheduler.run(partial(steps, scheduler, control, seen, "stopped", threading.Event())))
    await until(lambda: "stopped" in seen)
    control.park()
    await scheduler.run(lambda: None)
    wanted = False
    control.go_on()
    with pytest.raises(AbandonedError):
        await stopped
    with pytest.raises(ZeroDivisionError):
        await scheduler.run(lambda: 1 // 0)
    assert await scheduler.run(lambda: "goes on") == "goes on"


async def test_what_has_not_begun_is_cancelled_at_the_end() -> None:
    scheduler, begun, end, seen = (
        StackScheduler(ThreadPoolExecutor(1)),
        threading.Event(),
        threading.Event(),
        list[str](),
    )

    def wait() -> bool:
        begun.set()
        return end.wait(10)

    running = asyncio.create_task(scheduler.run(wait))
    queued = asyncio.create_task(scheduler.run(lambda: seen.append("began")))
    assert await asyncio.to_thread(begun.wait, 10)
    scheduler.close()
    end.set()
    assert await running
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert not seen
