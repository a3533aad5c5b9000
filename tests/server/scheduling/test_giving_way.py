"""Long runs in a thread, like an engine's: they stop once nobody waits, and are parked while shorter inputs run."""

import asyncio
import time
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager

import pytest

from blora.server.errors import DeadlineExceededError, DrainingError, QueueFullError
from blora.server.scheduling.batcher import Batcher, Completed, Work
from blora.server.scheduling.control import Control
from tests.server.scheduling.test_batcher import LIMITS, Notes

STEP_S = 0.01


class Threaded:
    """Worker that takes 10 ms for every ten tokens x draws of a payload "NAME COST"."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.begun: list[str] = []

    async def run(self, payloads: Sequence[str], control: Control) -> list[str]:
        return await asyncio.to_thread(self._compute, payloads, control)

    def _compute(self, payloads: Sequence[str], control: Control) -> list[str]:
        names = [payload.split()[0] for payload in payloads]
        self.begun += names
        for _ in range(sum(int(payload.split()[1]) for payload in payloads) // 10):
            control.checkpoint()
            self.steps.append(names[0])
            time.sleep(STEP_S)
        return [name.upper() for name in names]


class Bench:
    def __init__(self) -> None:
        self.worker, self.notes = Threaded(), Notes()
        self.batcher: Batcher[str, str] = Batcher(self.worker.run, observer=self.notes, **LIMITS)

    def submit(
        self, name: str, cost: int, owner: Hashable = "somebody", timeout_s: float = 60
    ) -> asyncio.Task[Completed[str]]:
        draws = max(1, cost // 100)
        work = Work(f"{name} {cost}", (cost // draws,), draws, "group", owner)
        return asyncio.create_task(self.batcher.submit(work, deadline=asyncio.get_running_loop().time() + timeout_s))

    async def until_running(self, name: str) -> None:
        async with asyncio.timeout(30):
            while name not in self.worker.steps:
                await asyncio.sleep(STEP_S)

    async def learn_the_pace(self) -> None:
        for cost in (20, 40, 20, 40, 20, 40, 20, 40):
            await self.submit("known", cost)
        self.worker.steps.clear()


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    made.batcher.start()
    yield made
    await made.batcher.stop()


async def until_stopped(b: Bench) -> None:
    async with asyncio.timeout(30):
        while b.batcher._begun():
            await asyncio.sleep(STEP_S)


async def test_a_run_stops_once_its_client_has_left() -> None:
    async with bench() as b:
        leaving = b.submit("heavy", 10_000)
        await b.until_running("heavy")
        leaving.cancel()
        await until_stopped(b)
        assert len(b.worker.steps) < 500
        assert (b.notes.drops, b.notes.forwards) == (["cancelled"], [])
        assert [seconds >= STEP_S for seconds in b.notes.worked_s] == [True]
        assert not b.batcher.last_forward_failed
        assert (await b.submit("next", 10)).result == "NEXT"


async def test_a_run_stops_once_its_deadline_has_passed() -> None:
    async with bench() as b:
        late = b.submit("heavy", 10_000, timeout_s=0.2)
        with pytest.raises(DeadlineExceededError):
            await late
        await until_stopped(b)
        assert len(b.worker.steps) < 500
        assert (b.notes.drops, b.notes.forwards) == (["expired"], [])
        assert [seconds >= 0.15 for seconds in b.notes.worked_s] == [True]
        assert not b.batcher.last_forward_failed


async def test_a_run_goes_on_while_anybody_waits_for_it() -> None:
    async with bench() as b:
        held = b.submit("held", 20)
        await b.until_running("held")
        leaving, staying = b.submit("leaving", 50), b.submit("staying", 50, timeout_s=10)
        await b.until_running("leaving")  # in one pass with the other
        leaving.cancel()
        assert (await staying).result == "STAYING"
        assert (await held).result == "HELD"


@pytest.mark.parametrize("known", [False, True])
async def test_a_long_run_waits_while_another_owners_short_inputs_go_first(known: bool) -> None:
    async with bench() as b:
        if known:
            await b.learn_the_pace()
        heavy = b.submit("heavy", 4000, owner="heavy")
        await b.until_running("heavy")
        for i in range(5):
            await b.submit(f"short{i}", 20, owner="other")
            assert not heavy.done()
        done = await heavy
        assert done.result == "HEAVY"
        assert b.worker.steps.count("heavy") == 400
        # The time in which others went first was spent waiting.
        assert done.queue_s >= 5 * 2 * STEP_S
        assert done.compute_s >= 400 * STEP_S


async def test_a_run_longer_than_a_pass_waits_for_short_inputs_of_its_own_owner_too() -> None:
    async with bench() as b:
        await b.learn_the_pace()
        heavy = b.submit("heavy", 4000)
        await b.until_running("heavy")
        assert (await b.submit("short", 20)).result == "SHORT"
        assert not heavy.done()
        heavy.cancel()


async def test_a_run_does_not_wait_for_an_input_that_takes_as_long() -> None:
    async with bench() as b:
        await b.learn_the_pace()
        first = b.submit("first", 100, owner="a")
        await b.until_running("first")
        second = b.submit("second", 100, owner="b")
        await asyncio.gather(first, second)
        assert b.worker.steps == ["first"] * 10 + ["second"] * 10


async def test_a_long_input_does_not_interrupt_one_of_its_own_owner() -> None:
    async with bench() as b:
        await b.learn_the_pace()
        first = b.submit("first", 300)
        await b.until_running("first")
        second, short = b.submit("second", 300), b.submit("short", 10)
        await asyncio.gather(first, second, short)
        last_of_first = len(b.worker.steps) - b.worker.steps[::-1].index("first")
        assert b.worker.steps.index("second") >= last_of_first
        assert b.worker.steps.index("short") < last_of_first


async def test_a_long_run_is_not_starved_by_short_ones() -> None:
    """Three clients of another owner ask without a pause; the long run gets a fifth of the time."""
    async with bench() as b:
        await b.learn_the_pace()
        heavy = b.submit("heavy", 1000, owner="heavy")
        await b.until_running("heavy")

        async def ask_on(name: str) -> None:
            while not heavy.done():
                await b.submit(name, 40, owner="other")

        await asyncio.gather(*(ask_on(name) for name in ("x", "y", "z")))
        others = sum(step != "heavy" for step in b.worker.steps)
        assert others < 10 * b.worker.steps.count("heavy")


async def test_long_runs_of_several_owners_share_the_worker() -> None:
    async with bench() as b:
        await b.learn_the_pace()
        tasks = [b.submit("a", 600, owner="a")]
        await b.until_running("a")
        await asyncio.sleep(0.2)
        tasks += [b.submit(name, 600, owner=name) for name in "bcdef"]
        done = await asyncio.gather(*tasks)
        assert [each.result for each in done] == list("ABCDEF")
        assert sorted(b.worker.begun[-6:]) == list("abcdef")


async def test_a_run_that_others_gave_way_to_gives_way_to_them_once_it_is_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("blora.server.scheduling.runs._LEAD_S", 5 * STEP_S)
    async with bench() as b:
        first = b.submit("first", 500, owner="a")
        await b.until_running("first")
        second = b.submit("second", 300, owner="b")  # nothing is known of how long it takes
        await asyncio.gather(first, second)
        steps = b.worker.steps
        assert "first" in steps[steps.index("second") : len(steps) - steps[::-1].index("second")]


async def test_a_run_gives_way_once_somebody_waits_and_it_has_had_the_worker_for_as_long_as_it_may() -> None:
    b = Bench()  # its worker has not begun
    heavy = b.submit("heavy", 1000, owner="a")
    await asyncio.sleep(0)
    run = b.batcher._next()
    assert run is not None
    run.clock, b.batcher._guaranteed_s = (lambda: (run.since or 0.0) + 2.0), 2.0
    assert not b.batcher._should_park(run)
    short = b.submit("short", 20, owner="b")
    await asyncio.sleep(0)
    assert b.batcher._should_park(run)
    b.batcher._guaranteed_s = 2.1
    assert not b.batcher._should_park(run)
    for task in (heavy, short):
        task.cancel()
    await b.batcher.stop()


async def test_a_run_that_goes_on_after_a_new_one_has_a_quarter_of_its_time_for_certain() -> None:
    b = Bench()  # its worker has not begun
    asked = [b.submit(name, 1000, owner=name) for name in ("first", "second")]
    await asyncio.sleep(0)
    guaranteed_s = []
    for _ in range(3):
        run = b.batcher._next()
        assert run is not None
        run.clock = lambda since=run.since: since + 8.0
        b.batcher._on_parked(run)
        guaranteed_s.append(b.batcher._guaranteed_s)
    assert guaranteed_s == [0.0, 2.0, 0.0]  # nobody else was parked; a new run; one that had gone on
    for task in asked:
        task.cancel()
    await b.batcher.stop()


async def test_a_run_is_full_if_inputs_stay_behind_for_lack_of_room_alone() -> None:
    b = Bench()  # its worker has not begun
    asked = [b.submit(name, 100, owner=name) for name in ("first", "second", "third")]
    await asyncio.sleep(0)
    first = b.batcher._next()
    assert first is not None
    b.batcher._on_parked(first)
    second = b.batcher._next()  # the third may have stayed behind because the first one would not give way
    b.batcher._parked.clear()
    third = b.batcher._next()
    assert [run.is_full for run in (first, second, third) if run is not None] == [True, False, False]
    for task in asked:
        task.cancel()
    for run in (first, second, third):
        if run is not None and run.task is not None:
            run.task.cancel()
    await b.batcher.stop()


async def test_four_runs_are_in_progress_at_most_and_the_last_one_takes_a_single_pass() -> None:
    b = Bench()  # its worker has not begun
    asked = [
        b.submit(name, cost, owner=name)
        for name, cost in [*((f"long{i}", 200) for i in range(4)), ("x", 20), ("y", 20)]
    ]
    await asyncio.sleep(0)
    begun = []
    for _ in range(4):
        run = b.batcher._next()
        assert run is not None
        begun.append(run.items[0].work.payload)
        b.batcher._on_parked(run)
        b.batcher._guaranteed_s = 0.0
    assert begun == ["long0 200", "long1 200", "long2 200", "x 20"]
    fifth = b.batcher._next()
    assert fifth is not None
    assert fifth.items[0].work.payload in begun  # it goes on
    for task in asked:
        task.cancel()
    await b.batcher.stop()


async def test_an_input_takes_no_longer_ones_along_than_a_parked_run_gives_way_to() -> None:
    b = Bench()  # its worker has not begun
    asked = [b.submit("heavy", 200, owner="a")]
    await asyncio.sleep(0)
    parked = b.batcher._next()
    assert parked is not None
    b.batcher._on_parked(parked)
    parked.used_s = 4.0
    for cost in (50, 100):
        b.batcher.pace.measure(cost, cost / 10, full=False, now=0)
    asked += [b.submit(f"short{cost}", cost, owner="b") for cost in (30, 50)]  # which fit into a pass of 100
    await asyncio.sleep(0)
    run = b.batcher._next()
    assert run is not None
    assert [item.work.payload for item in run.items] == ["short30 30"]
    for task in asked:
        task.cancel()
    await b.batcher.stop()


async def test_a_newcomer_is_not_refused_for_a_long_run_that_gives_way_to_it() -> None:
    async with bench() as b:
        await b.learn_the_pace()
        heavy = b.submit("heavy", 9000, owner="heavy")  # nine seconds
        await b.until_running("heavy")
        assert (await b.submit("short", 20, owner="other", timeout_s=5)).result == "SHORT"
        heavy.cancel()


@pytest.mark.parametrize(
    ("ahead", "cost", "delay"), [((30, 40), 5, 70), ((30, 900, 800), 5, 30 + 100), ((300, 900), 100, 300 + 400)]
)
async def test_all_long_runs_together_delay_an_input_by_the_time_until_they_give_way(
    ahead: tuple[int, ...], cost: int, delay: int
) -> None:
    """That is the time of a full pass, or four times what the input takes if that is longer."""
    assert Bench().batcher._delay(ahead, cost) == delay


async def test_draining_ends_what_waits_for_others() -> None:
    b = Bench()
    b.batcher.start()
    await b.learn_the_pace()
    heavy = b.submit("heavy", 5000, owner="heavy")
    await b.until_running("heavy")
    other = b.submit("other", 100, owner="other")
    await b.until_running("other")
    await b.batcher.stop()
    for task in (heavy, other):
        with pytest.raises(DrainingError):
            await task
    n_steps = len(b.worker.steps)
    await asyncio.sleep(10 * STEP_S)
    assert len(b.worker.steps) <= n_steps + 2  # both threads have ended


async def test_the_backlog_is_what_waits_what_runs_and_what_was_refused() -> None:
    async with bench() as b:
        assert b.batcher.backlog_s == 0
        await b.learn_the_pace()
        running = b.submit("running", 3000)  # three seconds
        await b.until_running("running")
        assert 1 < b.batcher.backlog_s < 6
        waiting = b.submit("waiting", 3000)
        await asyncio.sleep(0)
        assert 3 < b.batcher.backlog_s < 9
        with pytest.raises(QueueFullError):
            await b.submit("refused", 2000, timeout_s=6)
        assert b.batcher.backlog_s > 5
        for task in (running, waiting):
            task.cancel()
        await until_stopped(b)
        assert b.batcher.backlog_s > 1  # what was refused is demand
