"""Turns of owners at work that is done one piece at a time, and the bounded queue for them."""

import asyncio

import pytest

from blora.server.errors import QueueFullError
from blora.server.scheduling.admission import Room
from blora.server.scheduling.turns import Turns


class Order:
    """Recorder of the order of the turns, one step of the loop at a time."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.done: list[str] = []
        self.gate = asyncio.Event()

    async def one(self, name: str, owner: str, cost: int, *, admitted: bool = False) -> None:
        async with self.turns.turn(owner, cost, admitted=admitted):
            await self.gate.wait()
            self.done.append(name)


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


async def test_retry_after_follows_the_measured_speed() -> None:
    now = iter([0.0, 20.0, 20.0])
    waiting = Turns(Room(1, 10**6), what="texts", unit="characters", clock=lambda: next(now))
    async with waiting.turn("one", 1000):  # 0.02 s a character
        pass
    order = Order(waiting)
    tasks = [asyncio.create_task(order.one(str(i), "one", 500)) for i in range(2)]
    await started(*tasks)
    with pytest.raises(QueueFullError) as info:
        await order.one("late", "other", 1)
    assert info.value.retry_after_s == 10
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_further_step_is_never_refused() -> None:
    order = Order(turns(max_inputs=1))
    tasks = [asyncio.create_task(order.one(str(i), str(i), 1)) for i in range(2)]
    await started(*tasks)
    with pytest.raises(QueueFullError):
        await order.one("2", "2", 1)
    further = asyncio.create_task(order.one("3", "3", 1, admitted=True))
    await started(further)
    order.gate.set()
    await asyncio.gather(*tasks, further)
    assert order.done == ["0", "1", "3"]
