"""A flood of inputs, on a clock that jumps to the next event: answers go on to come, and in time."""

import asyncio
import random
from collections.abc import Sequence
from selectors import DefaultSelector, SelectorKey
from typing import Any

import pytest

from blora.server.errors import DeadlineExceededError, QueueFullError, TooLargeError
from blora.server.scheduling.batcher import Batcher, Completed, Work
from blora.server.scheduling.control import Control
from tests.server.scheduling.test_batcher import LIMITS, Bench, Notes, settle

TOKENS, BATCH = 40, 1000
TIMEOUT_S = 30.0
PASS_S, FLOODED_PASS_S = 0.5, 1.5
CALM_S, SETTLE_S, COUNTED_S = 30.0, 20.0, 60.0
CAPACITY = BATCH / TOKENS / FLOODED_PASS_S  # answers a second under the flood


class Jumping(DefaultSelector):
    """Selector that never waits: the clock jumps by the time that it would have waited."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """Event loop on a clock of its own."""

    def __init__(self) -> None:
        self.selector = Jumping()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


class Flood:
    """Passes that become three times as slow when the flood begins, and times of arrival and of answers.

    Args:
        noise: standard deviation of the logarithm of a pass's seconds.
    """

    def __init__(self, noise: float) -> None:
        self.noise = noise
        self.chance = random.Random(0)
        self.flooded = False
        self.seen: list[tuple[float, str]] = []

    async def run(self, payloads: Sequence[str], control: Control) -> list[str]:
        seconds = FLOODED_PASS_S if self.flooded else PASS_S
        await asyncio.sleep(seconds * self.chance.lognormvariate(0, self.noise))
        return list(payloads)

    async def ask(self, batcher: Batcher[str, str]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await batcher.submit(Work("x", (TOKENS,), 1, "group"), deadline=loop.time() + TIMEOUT_S)
            outcome = "answered"
        except QueueFullError:
            outcome = "refused"
        except DeadlineExceededError:
            outcome = "late"
        self.seen.append((loop.time(), outcome))

    async def arrivals(self, batcher: Batcher[str, str], rate: float, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            while asyncio.get_running_loop().time() < end:
                group.create_task(self.ask(batcher))
                await asyncio.sleep(self.chance.expovariate(rate))

    async def go(self) -> None:
        limits: dict[str, Any] = LIMITS | {"max_batch_tokens": BATCH, "max_queue_tokens": 10**6, "timeout_s": TIMEOUT_S}
        batcher = Batcher(self.run, observer=Notes(), **limits | {"max_queue_requests": 10**4})
        batcher.start()
        await self.arrivals(batcher, 0.9 * BATCH / TOKENS / PASS_S, CALM_S)
        self.flooded = True
        self.began = asyncio.get_running_loop().time()
        await self.arrivals(batcher, 4 * CAPACITY, SETTLE_S + COUNTED_S)
        await batcher.stop()

    def count(self, outcome: str) -> int:
        since = self.began + SETTLE_S
        return sum(since <= when < since + COUNTED_S and what == outcome for when, what in self.seen)


@pytest.fixture(scope="module", params=[0.0, 0.3], ids=["steady", "noisy"])
def flood(request: pytest.FixtureRequest) -> Flood:
    made = Flood(request.param)
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(made.go())
    return made


def test_a_flood_that_slows_the_passes_down_is_answered_at_their_speed(flood: Flood) -> None:
    assert flood.count("answered") > 0.8 * CAPACITY * COUNTED_S
    assert flood.count("refused") > 2 * CAPACITY * COUNTED_S


def test_few_accepted_inputs_of_a_flood_are_late(flood: Flood) -> None:
    assert flood.count("late") < 0.5 * flood.count("answered")


@pytest.mark.parametrize("others", [True, False])
def test_an_input_that_would_be_late_waits_for_those_that_would_not(others: bool) -> None:
    async def first_batches() -> tuple[list[list[str]], str | BaseException]:
        b = Bench()
        b.batcher.start()
        b.worker.seconds = 1.0
        for _ in range(8):
            await b.submit("known", n_tokens=100)
        held = await b.hold()
        late = b.submit("late", n_tokens=100, timeout_s=5)
        asked = [b.submit("in time", n_tokens=100)] if others else []
        await asyncio.sleep(3.5)
        results = await b.release(late, held, *asked)  # after which the holder takes one second more
        await b.batcher.stop()
        outcome = results[0]
        return b.worker.batches, outcome.result if isinstance(outcome, Completed) else outcome

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        batches, outcome = runner.run(first_batches())
    # Without others, an estimate keeps nothing from the worker.
    assert batches[0] == ["in time" if others else "late"]
    assert isinstance(outcome, DeadlineExceededError)


def test_a_slow_spell_does_not_keep_long_inputs_out_for_ever() -> None:
    """Long inputs that the server is too slow for at the moment; it is soon as fast as before, but only they come."""

    async def outcomes() -> list[type[Exception] | None]:
        slow, found = True, []

        async def run(payloads: Sequence[str], control: Control) -> list[str]:
            await asyncio.sleep(sum(map(int, payloads)) * (0.1 if slow else 0.01))
            return list(payloads)

        limits = LIMITS | {"max_batch_tokens": BATCH, "timeout_s": TIMEOUT_S}
        batcher = Batcher(run, observer=Notes(), **limits)
        batcher.start()
        loop = asyncio.get_running_loop()
        for n_tokens in [*range(20, 40), *[800] * 10]:
            slow = n_tokens < 800
            if not slow:
                await asyncio.sleep(30)
            try:
                await batcher.submit(Work(str(n_tokens), (n_tokens,), 1, "g"), deadline=loop.time() + TIMEOUT_S)
                found.append(None)
            except TooLargeError as exc:
                found.append(type(exc))
        await batcher.stop()
        return found[20:]

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        found = runner.run(outcomes())
    assert found[0] is TooLargeError
    assert found[2:4].count(None) > 0
    assert found[-1] is None


def test_inputs_that_would_be_late_are_no_work_ahead_of_a_new_one() -> None:
    async def outcomes() -> list[Any]:
        b = Bench()
        b.batcher.start()
        b.worker.seconds = 1.0
        for _ in range(8):
            await b.submit("known", n_tokens=100)
        held = await b.hold()
        late = [b.submit("late", n_tokens=100, timeout_s=8) for _ in range(4)]
        await asyncio.sleep(7.5)
        new = b.submit("new", n_tokens=100, timeout_s=4)
        results = await b.release(new, held, *late)
        await b.batcher.stop()
        return results

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        new, _, *late = runner.run(outcomes())
    assert isinstance(new, Completed)
    assert [type(one) for one in late] == [DeadlineExceededError] * 4


@pytest.mark.parametrize(("timeout_s", "n_others", "in_time"), [(300, 1, True), (1100, 20, True), (900, 20, False)])
async def test_an_input_is_in_time_if_a_pass_of_what_waits_is_and_a_long_one_if_all_of_it_is(
    timeout_s: float, n_others: int, in_time: bool
) -> None:
    """At ten seconds a token, a full pass takes 1000 s."""
    b = Bench()  # its worker has not begun
    others = [f"other{i}" for i in range(n_others)]
    asked = [b.submit("urgent", timeout_s=timeout_s), *(b.submit(name, timeout_s=10**5) for name in others)]
    await settle()
    for tokens in (50, 100):
        b.batcher.pace.measure(tokens, 10.0 * tokens, full=False, now=0)

    def found(later_s: float) -> list[str]:
        return [item.work.payload for item in b.batcher._in_time(asyncio.get_running_loop().time() + later_s)]

    assert found(0) == (["urgent"] if in_time else []) + others
    asked.append(b.submit("long", n_tokens=50, n_draws=10, timeout_s=10**5))  # takes 5000 s
    await settle()
    assert [found(10**5 - left_s)[n_others:] for left_s in (6000, 4000)] == [["long"], []]
    for task in asked:
        task.cancel()
    await b.batcher.stop()
