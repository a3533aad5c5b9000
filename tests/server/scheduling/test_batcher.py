"""The batcher alone, with a worker that records its payloads."""

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from blora.server.errors import DeadlineExceededError, QueueFullError, TooLargeError
from blora.server.scheduling.batcher import Batcher, Completed, Work
from blora.server.scheduling.control import Control

LIMITS = {
    "max_batch_tokens": 100,
    "max_queue_tokens": 10_000,
    "max_queue_requests": 100,
    "max_input_passes": 100,
    "timeout_s": 60,
}


class Worker:
    """Worker that returns payloads in capitals, raises at `bad` ones, and waits at the gate."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.seconds = 0.0

    async def run(self, payloads: Sequence[str], control: Control) -> list[str]:
        self.batches.append(list(payloads))
        await self.gate.wait()
        await asyncio.sleep(self.seconds)
        if any("bad" in payload for payload in payloads):
            raise RuntimeError("poisoned")
        return [payload.upper() for payload in payloads]


class Notes:
    """Observer that records the batcher's reports."""

    def __init__(self) -> None:
        self.forwards: list[tuple[int, int]] = []
        self.worked_s: list[float] = []
        self.drops: list[str] = []
        self.waits = 0
        self.depth = 0

    def worked(self, seconds: float) -> None:
        self.worked_s.append(seconds)

    def forward_done(self, *, rows: int, tokens: int) -> None:
        self.forwards.append((rows, tokens))

    def waited(self, seconds: float) -> None:
        self.waits += 1

    def dropped(self, reason: str) -> None:
        self.drops.append(reason)

    def queue_changed(self, depth: int) -> None:
        self.depth = depth


class Bench:
    """A batcher with its worker and its observer."""

    def __init__(self, **limits: int) -> None:
        self.worker = Worker()
        self.notes = Notes()
        self.batcher: Batcher[str, str] = Batcher(self.worker.run, observer=self.notes, **LIMITS | limits)

    def submit(
        self,
        payload: str,
        *,
        n_tokens: int = 10,
        n_choice_tokens: int = 0,
        n_draws: int = 1,
        group: Hashable = "a",
        owner: Hashable = None,
        timeout_s: float = 10,
        **shared: Any,
    ) -> asyncio.Task[Completed[str]]:
        deadline = asyncio.get_running_loop().time() + timeout_s
        work = Work(payload, (n_tokens, n_choice_tokens), n_draws, group, owner, **shared)
        return asyncio.create_task(self.batcher.submit(work, deadline=deadline))

    async def hold(self) -> asyncio.Task[Completed[str]]:
        """Keep the worker busy with another input until the gate opens."""
        self.worker.gate.clear()
        self.worker.batches.clear()
        task = self.submit("holder", group="holder")
        while not self.worker.batches:
            await asyncio.sleep(0)
        self.worker.batches.clear()
        return task

    async def release(self, *tasks: asyncio.Task[Completed[str]]) -> list[Any]:
        self.worker.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def bench(**limits: int) -> AsyncIterator[Bench]:
    made = Bench(**limits)
    made.batcher.start()
    yield made
    made.worker.gate.set()
    await made.batcher.stop()


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_input_comes_back_with_its_times() -> None:
    async with bench() as b:
        b.worker.seconds = 0.01
        done = await b.submit("x")
        assert done.result == "X"
        assert done.queue_s >= 0
        assert done.compute_s >= 0.009
        assert (b.notes.forwards, b.notes.waits) == ([(1, 10)], 1)


async def test_those_who_waited_share_a_forward_pass_in_order() -> None:
    async with bench() as b:
        held = await b.hold()
        assert b.notes.depth == 0  # what runs waits no more
        tasks = [b.submit(str(i)) for i in range(5)]
        await settle()
        assert b.notes.depth == 5
        results = await b.release(held, *tasks)
        assert b.worker.batches == [["0", "1", "2", "3", "4"]]
        assert [done.result for done in results[1:]] == list("01234")
        assert b.notes.depth == 0


@pytest.mark.parametrize(
    ("n_tokens", "n_draws", "rows"), [(10, 1, 10), (10, 2, 5), (30, 1, 3), (10, 10, 1), (100, 1, 1)]
)
async def test_a_batch_holds_rows_times_longest_times_draws(n_tokens: int, n_draws: int, rows: int) -> None:
    async with bench() as b:
        held = await b.hold()
        tasks = [b.submit(str(i), n_tokens=n_tokens, n_draws=n_draws) for i in range(12)]
        await settle()
        await b.release(held, *tasks)
        assert len(b.worker.batches[0]) == rows
        assert max(tokens for _, tokens in b.notes.forwards) <= 100
        assert sorted(p for batch in b.worker.batches for p in batch) == sorted(map(str, range(12)))


async def test_padding_counts() -> None:
    """A row of 60 and one of 10 would pad to 120 tokens."""
    async with bench() as b:
        held = await b.hold()
        tasks = [b.submit("long", n_tokens=60), b.submit("short", n_tokens=10)]
        await settle()
        await b.release(held, *tasks)
        assert b.worker.batches == [["long"], ["short"]]


async def test_padding_counts_part_by_part() -> None:
    """Prompts and choices start at shared columns: rows of 30 + 5 and 5 + 30 pad to 60 tokens each."""
    async with bench(max_batch_tokens=100) as b:
        held = await b.hold()
        tasks = [b.submit("p", n_tokens=30, n_choice_tokens=5), b.submit("c", n_tokens=5, n_choice_tokens=30)]
        await settle()
        await b.release(held, *tasks)
        assert b.worker.batches == [["p"], ["c"]]


async def test_a_text_that_inputs_share_counts_once_in_a_batch_and_in_the_queue() -> None:
    """Three rows of 40 tokens, 30 of them shared, are 60 tokens; a fourth without that text does not fit."""
    async with bench(max_batch_tokens=90, max_queue_tokens=100) as b:
        held = await b.hold()
        tasks = [b.submit(str(i), n_tokens=40, text="read", text_tokens=30) for i in range(3)]
        tasks.append(b.submit("other", n_tokens=40))
        await settle()
        with pytest.raises(QueueFullError, match="and 100 of at most 100 tokens x draws"):
            await b.submit("x", n_tokens=1)
        await b.release(held, *tasks)
        assert b.worker.batches == [["0", "1", "2"], ["other"]]
        assert b.notes.forwards[1:] == [(3, 60), (1, 40)]


class Lengths(tuple[int, ...]):
    """Lengths that count how often they are read."""

    reads = 0

    def __getitem__(self, place: Any) -> Any:
        Lengths.reads += 1
        return super().__getitem__(place)


async def reads_for(n_inputs: int) -> int:
    """Return how often lengths are read until a batch of all inputs is chosen."""
    async with bench(max_batch_tokens=10 * n_inputs, max_queue_tokens=10**5, max_queue_requests=10**4) as b:
        held = await b.hold()
        works = [Work(str(i), Lengths((10, 0)), 1, "a") for i in range(n_inputs)]
        deadline = asyncio.get_running_loop().time() + 60
        tasks = [asyncio.create_task(b.batcher.submit(work, deadline=deadline)) for work in works]
        await settle()
        Lengths.reads = 0
        b.worker.gate.set()
        while not b.worker.batches:
            await asyncio.sleep(0)
        reads = Lengths.reads
        assert reads > 0
        assert len(b.worker.batches[0]) == n_inputs
        await b.release(held, *tasks)
        return reads


async def test_a_batch_is_chosen_in_time_that_grows_with_the_waiting_inputs_alone() -> None:
    assert await reads_for(400) < 2.5 * await reads_for(200)


async def test_groups_do_not_mix_and_the_oldest_chooses() -> None:
    async with bench() as b:
        held = await b.hold()
        tasks = [b.submit(f"{g}{i}", group=g) for i, g in enumerate("abab")]
        await settle()
        await b.release(held, *tasks)
        assert b.worker.batches == [["a0", "a2"], ["b1", "b3"]]


async def test_like_lengths_go_together_but_the_oldest_goes_first() -> None:
    async with bench(max_batch_tokens=90) as b:
        held = await b.hold()
        lengths = {"old": 40, "tiny": 10, "near": 45, "small": 12, "mini": 11}
        tasks = [b.submit(name, n_tokens=n) for name, n in lengths.items()]
        await settle()
        await b.release(held, *tasks)
        assert b.worker.batches == [["old", "near"], ["tiny", "mini", "small"]]


async def test_an_odd_length_is_not_starved_by_newcomers() -> None:
    """Short inputs keep arriving; the long one runs as soon as it is the oldest."""
    async with bench(max_batch_tokens=60) as b:
        held = await b.hold()
        tasks = [b.submit("s0"), b.submit("long", n_tokens=60), b.submit("s1"), b.submit("s2")]
        await settle()
        b.worker.gate.set()
        for i in range(3, 30):
            tasks.append(b.submit(f"s{i}"))
            await asyncio.sleep(0)
        await asyncio.gather(held, *tasks)
        assert b.worker.batches.index(["long"]) <= 1


async def test_a_rare_group_is_not_starved_by_a_busy_one() -> None:
    async with bench(max_batch_tokens=20) as b:
        held = await b.hold()
        tasks = [b.submit("a0"), b.submit("rare", group="rare")]
        tasks += [b.submit(f"a{i}") for i in range(1, 10)]
        await settle()
        await b.release(held, *tasks)
        assert b.worker.batches[1] == ["rare"]


async def test_an_input_with_a_draw_beyond_a_whole_batch_is_refused() -> None:
    async with bench() as b:
        with pytest.raises(TooLargeError, match="got 101 tokens, expected at most 100"):
            await b.submit("x", n_tokens=101, n_draws=1)


async def test_an_input_with_more_draws_than_the_queue_may_hold_is_refused() -> None:
    async with bench(max_queue_tokens=200) as b:
        with pytest.raises(TooLargeError, match="51 tokens x 4 draws, expected at most 200"):
            await b.submit("x", n_tokens=51, n_draws=4)


async def test_an_input_with_more_draws_than_a_batch_may_hold_runs_alone() -> None:
    async with bench() as b:
        held = await b.hold()
        tasks = [b.submit("wide", n_tokens=51, n_draws=2), b.submit("next", n_tokens=2, n_draws=2)]
        await settle()
        await b.release(held, *tasks)
        assert b.worker.batches == [["wide"], ["next"]]


async def test_a_cancelled_input_is_dropped_before_compute_and_counted() -> None:
    async with bench() as b:
        held = await b.hold()
        leaving, staying = b.submit("leaving"), b.submit("staying")
        await settle()
        leaving.cancel()
        await settle()
        assert (b.notes.drops, b.notes.depth) == (["cancelled"], 1)
        await b.release(held, staying)
        assert b.worker.batches == [["staying"]]


async def test_a_cancelled_input_under_way_is_no_drop_and_harms_nobody() -> None:
    async with bench() as b:
        held = await b.hold()
        held.cancel()
        await settle()
        await b.release()
        assert (await b.submit("x")).result == "X"
        assert b.notes.drops == []


async def test_an_expired_input_is_dropped_before_compute_and_counted() -> None:
    async with bench() as b:
        held = await b.hold()
        late = b.submit("late", timeout_s=0.01)
        with pytest.raises(DeadlineExceededError, match="before the deadline"):
            await late
        assert b.notes.drops == ["expired"]
        await b.release(held)
        assert b.worker.batches == []


async def test_a_deadline_that_passes_during_compute_is_kept() -> None:
    async with bench() as b:
        b.worker.gate.clear()
        with pytest.raises(DeadlineExceededError):
            await b.submit("slow", timeout_s=0.01)
        assert b.notes.drops == []
        b.worker.gate.set()
        assert (await b.submit("x")).result == "X"


async def test_dropped_inputs_leave_their_room_at_once() -> None:
    async with bench(max_queue_requests=1) as b:
        held = await b.hold()
        leaving = b.submit("leaving")
        await settle()
        with pytest.raises(QueueFullError):
            await b.submit("refused")
        leaving.cancel()
        await settle()
        [_, done] = await b.release(held, b.submit("fits"))
        assert done.result == "FITS"


async def test_a_full_queue_counts_tokens_times_draws() -> None:
    async with bench(max_queue_tokens=100) as b:
        held = await b.hold()
        tasks = [b.submit(str(i), n_tokens=10, n_draws=5) for i in range(2)]
        await settle()
        with pytest.raises(
            QueueFullError, match="2 of at most 100 inputs, and 100 of at most 100 tokens x draws"
        ) as info:
            await b.submit("x", n_tokens=1)
        assert info.value.retry_after_s == 1  # nothing measured yet
        await b.release(held, *tasks)


async def test_retry_after_is_the_waiting_work_over_the_measured_speed() -> None:
    """100 tokens in 0.05 s and 200 in 0.1 s are 2000 a second; about 6000 wait."""
    async with bench(max_batch_tokens=3000, max_queue_tokens=6000) as b:
        for n_tokens in (100, 200):
            b.worker.seconds = n_tokens / 2000
            await b.submit("measured", n_tokens=n_tokens)
        b.worker.seconds = 0
        held = await b.hold()
        tasks = [b.submit(str(i), n_tokens=3000) for i in range(2)]
        await settle()
        with pytest.raises(QueueFullError) as info:
            await b.submit("x")
        assert 3 <= info.value.retry_after_s <= 6
        await b.release(held, *tasks)


async def test_many_inputs_none_lost() -> None:
    async with bench(max_queue_requests=1000, max_queue_tokens=20_000) as b:
        tasks = [b.submit(f"i{i}", n_tokens=1 + i % 37, group=i % 3) for i in range(500)]
        results = await asyncio.gather(*tasks)
        assert [done.result for done in results] == [f"I{i}" for i in range(500)]
        assert b.notes.waits == 500
        assert all(tokens <= 100 for _, tokens in b.notes.forwards)


async def test_passes_of_two_groups_in_turn_tell_nothing_of_the_room_in_one() -> None:
    async with bench() as b:
        holder = await b.hold()
        asked = [b.submit(f"{name} {i}", group=name) for i in range(8) for name in "ab"]
        await b.release(holder, *asked)
        full = b.batcher.pace._full
    assert full == LIMITS["max_batch_tokens"]


async def test_inputs_that_run_alone_after_a_failure_tell_nothing_of_the_room_in_a_pass() -> None:
    async with bench(max_batch_tokens=100) as b:
        holder = await b.hold()
        asked = [b.submit("bad" if i == 3 else f"good {i}") for i in range(20)]
        results = await b.release(holder, *asked)
        full = b.batcher.pace._full
    assert sum(isinstance(result, RuntimeError) for result in results) == 1
    assert full >= 90
