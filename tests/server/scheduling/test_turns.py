"""Turns of owners at work that is done one piece at a time, and the bounded queue for them."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from blora.server.errors import QueueFullError
from blora.server.scheduling.admission import Room
from blora.server.scheduling.fair_share import FairShare, Owned
from blora.server.scheduling.turns import Turns, to_the_end


class Order:
    """Recorder of the order of the turns, one step of the loop at a time."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.done: list[str] = []
        self.gate = asyncio.Event()

    async def one(self, name: str, owner: str, cost: int, *, first_step: bool = True) -> None:
        async with self.turns.turn(owner, cost, first_step=first_step):
            await self.gate.wait()
            self.done.append(name)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def turns(max_inputs: int = 100, max_cost: int = 10**9) -> Turns:
    return Turns(Room(max_inputs, max_cost), what="texts to be read", unit="characters")


async def started(*waiting: "asyncio.Task[None]") -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)


async def test_forty_long_texts_of_one_owner_let_another_owners_short_one_go_second() -> None:
    order = Order(turns())
    flood = [asyncio.create_task(order.one(f"flood {i}", "one", 980_000)) for i in range(40)]
    await started(*flood)
    asked = asyncio.create_task(order.one("asked", "other", 50))
    await started(asked)
    order.gate.set()
    await asyncio.gather(*flood, asked)
    assert order.done.index("asked") == 1
    assert len(order.done) == 41


async def test_the_next_turn_is_found_without_a_look_at_those_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    turns_of = FairShare.turns

    def counted(share: FairShare, waiting: list[Owned]) -> list[float]:
        looked_at.append(len(waiting))
        return turns_of(share, waiting)

    monkeypatch.setattr(FairShare, "turns", counted)
    order = Order(turns())
    tasks = [asyncio.create_task(order.one(f"{owner}{i}", owner, 1 + i % 3)) for i in range(40) for owner in "ab"]
    await started(*tasks)
    order.gate.set()
    await asyncio.gather(*tasks)
    assert max(looked_at) == 2  # the first of each owner
    for owner in "ab":
        assert [name for name in order.done if name[0] == owner] == [f"{owner}{i}" for i in range(40)]


async def test_who_left_gets_no_turn() -> None:
    order = Order(turns())
    tasks = [asyncio.create_task(order.one(str(i), "one", 10)) for i in range(3)]
    await started(*tasks)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    order.gate.set()
    await asyncio.gather(tasks[0], tasks[2])
    assert order.done == ["0", "2"]


async def test_who_leaves_during_a_turn_lets_the_next_go() -> None:
    order = Order(turns())
    tasks = [asyncio.create_task(order.one(str(i), "one", 10)) for i in range(2)]
    await started(*tasks)
    tasks[0].cancel()
    order.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order.done == ["1"]


async def test_who_leaves_at_the_moment_of_the_call_lets_the_next_go() -> None:
    order = Order(turns())
    order.gate.set()

    async def work() -> None:
        async with order.turns.turn("one", 10):
            tasks[0].cancel()

    working = asyncio.create_task(work())
    tasks = [asyncio.create_task(order.one(str(i), "one", 10)) for i in range(2)]
    await asyncio.gather(working, *tasks, return_exceptions=True)
    assert order.done == ["1"]


async def test_the_seconds_of_a_thread_whose_client_left_are_not_the_next_clients() -> None:
    clock, loop, begun, gate = Clock(), asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    order = Order(Turns(Room(1, 10**6), what="texts", unit="characters", clock=clock))
    order.gate.set()

    def in_thread() -> None:
        loop.call_soon_threadsafe(begun.set)
        gate.wait(60)

    async def work() -> None:
        async with order.turns.turn("one", 1000):
            await to_the_end(thread, in_thread)

    with ThreadPoolExecutor(1) as thread:
        leaving = asyncio.create_task(work())
        await begun.wait()
        leaving.cancel()
        following = asyncio.create_task(order.one("next", "other", 1))
        await started(leaving, following)
        assert order.done == []  # the thread is occupied
        clock.now = 20.0
        gate.set()
        await following
    assert leaving.cancelled()
    assert await retry_after_s(order, 500) == 10  # 20 s for 1000 characters, and none for one


@pytest.mark.parametrize(("max_inputs", "max_cost"), [(10, 10**9), (100, 1000)])
async def test_one_owner_holds_four_fifths_of_the_room_at_most(max_inputs: int, max_cost: int) -> None:
    order = Order(turns(max_inputs, max_cost))
    flood = [asyncio.create_task(order.one("flood", "one", 100)) for _ in range(30)]
    for _ in range(3):
        await asyncio.sleep(0)
    refused = [task for task in flood if task.done()]
    assert len(flood) - len(refused) == 9  # one that has its turn, and eight that wait
    for task in refused:
        assert isinstance(task.exception(), QueueFullError)
    asked = asyncio.create_task(order.one("asked", "other", 100))
    await started(asked)
    order.gate.set()
    await asyncio.gather(asked, *(task for task in flood if task not in refused))


async def test_a_text_that_is_longer_than_the_whole_room_waits_alone() -> None:
    order = Order(turns(max_cost=10))
    tasks = [asyncio.create_task(order.one(str(i), str(i), 100)) for i in range(2)]
    await started(*tasks)
    with pytest.raises(
        QueueFullError, match=r"1 texts to be read wait, with 100 characters, 0 of them yours.*try again"
    ):
        await order.one("2", "2", 100)
    order.gate.set()
    await asyncio.gather(*tasks)


async def retry_after_s(order: Order, cost: int) -> int | None:
    """Return the Retry-After of one who finds a full queue, in which work of a given cost waits."""
    order.gate.clear()
    tasks = [asyncio.create_task(order.one(str(i), "one", cost)) for i in range(2)]
    await started(*tasks)
    with pytest.raises(QueueFullError) as info:
        await order.one("late", "other", 1)
    order.gate.set()
    await asyncio.gather(*tasks)
    return info.value.retry_after_s


@pytest.mark.parametrize("fails", [False, True])
async def test_retry_after_follows_the_measured_speed(fails: bool) -> None:
    clock = Clock()
    waiting = Turns(Room(1, 10**6), what="texts", unit="characters", clock=clock)

    async def work() -> None:
        async with waiting.turn("one", 1000):
            clock.now += 20.0
            if fails:
                raise ValueError("no text")

    outcomes = await asyncio.gather(work(), return_exceptions=True)
    assert isinstance(outcomes[0], ValueError) == fails
    assert await retry_after_s(Order(waiting), 500) == 10  # 0.02 s a character


async def test_a_further_step_is_never_refused() -> None:
    order = Order(turns(max_inputs=1))
    tasks = [asyncio.create_task(order.one(str(i), str(i), 1)) for i in range(2)]
    await started(*tasks)
    with pytest.raises(QueueFullError):
        await order.one("2", "2", 1)
    further = asyncio.create_task(order.one("3", "3", 1, first_step=False))
    await started(further)
    order.gate.set()
    await asyncio.gather(*tasks, further)
    assert order.done == ["0", "1", "3"]


async def test_whoever_stops_waiting_lets_nobody_in_beside_the_one_whose_turn_it_is() -> None:
    order = Order(turns())
    first, last, leaving = [asyncio.create_task(order.one(name, "one", 1)) for name in ("first", "last", "leaving")]
    await started(first, last, leaving)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await started(first, last)
    order.gate.set()
    order.gate.clear()  # whoever waits at the gate by now goes on, and whoever comes later does not
    await started(last)
    assert order.done == ["first"]
    order.gate.set()
    async with asyncio.timeout(5):
        await asyncio.gather(first, last)
    assert order.done == ["first", "last"]
