"""Admission to the queue: room, shares of owners, and deadlines."""

import asyncio
from dataclasses import replace

import pytest

from blora.server.errors import QueueFullError, TooLargeError
from blora.server.scheduling.admission import Admission, Owner, QueueState
from blora.server.scheduling.runs import Work
from tests.server.scheduling.test_batcher import Bench, bench, settle

NOBODY = QueueState.of({}, None, ahead=0)


def admission(timeout_s: float = 30) -> Admission:
    limits = {"max_batch_tokens": 100, "max_queue_tokens": 1000, "max_queue_requests": 50, "max_input_passes": 9}
    return Admission(**limits, timeout_s=timeout_s)


async def measure(b: Bench, *, tokens_per_second: int) -> None:
    """Let the batcher measure a speed of its worker, which then takes no time."""
    for n_tokens in (50, 100):
        b.worker.seconds = n_tokens / tokens_per_second
        await b.submit("measured", n_tokens=n_tokens)
    b.worker.seconds = 0


def input_of(n_tokens: int, n_draws: int = 1, **more: int) -> Work[str]:
    return Work("x", (n_tokens,), n_draws, "group", **more)


@pytest.mark.parametrize(("n_tokens", "n_draws"), [(101, 1), (100, 11)])
def test_what_never_fits_is_told_so(n_tokens: int, n_draws: int) -> None:
    with pytest.raises(TooLargeError):
        admission().check_size(input_of(n_tokens, n_draws), now=0)


def test_what_just_fits_is_let_in() -> None:
    admission().check_size(input_of(100, 9), now=0)
    admission().check_room(1000, NOBODY, 30)


@pytest.mark.parametrize("asked", [input_of(91, 10), input_of(91, 4, most_draws=10), input_of(10, 1, overhead=900)])
def test_an_input_has_a_bound_of_all_the_work_it_may_come_to(asked: Work[str]) -> None:
    with pytest.raises(
        TooLargeError, match="expected at most 900 in one input: shorten the prompt or the choices, or ask"
    ) as info:
        admission().check_size(asked, now=0)
    assert (info.value.status, info.value.code) == (413, "too_much_work")


def test_what_cannot_be_done_in_time_even_by_an_idle_server_is_refused_with_the_estimate() -> None:
    """At 100 tokens per second, 900 take 9 s."""
    quick, patient = admission(timeout_s=5), admission(timeout_s=10)
    for some in (quick, patient):
        for _ in range(4):
            for tokens in (50, 100):
                some.check_size(input_of(90, 10), now=0)  # nothing is refused on a guess
                some.pace.measure(tokens, tokens / 100, full=False, now=0)
    with pytest.raises(TooLargeError, match=r"takes about 9 s .*90 tokens x 10 draws.* within 5 s.* fewer draws"):
        quick.check_size(input_of(90, 10), now=0)
    patient.check_size(input_of(90, 10), now=0)
    quick.check_size(input_of(90, 5, most_draws=10), now=0)  # it may well stop early


@pytest.mark.parametrize(
    "waiting",
    [
        replace(NOBODY, inputs=50, cost=50),
        replace(NOBODY, inputs=1, cost=991),
        # Of 50, 10 are free, and four times these are held already.
        replace(NOBODY, inputs=40, cost=40, client_inputs=40, client_cost=40),
        # Four times 199 is less than 801.
        replace(NOBODY, inputs=1, cost=801, client_inputs=1, client_cost=801),
        # Of 50, 12 are free, and an adapter may hold three times these.
        replace(NOBODY, inputs=38, cost=38, adapter_inputs=38, adapter_cost=38),
        # Three times 250 is less than 760.
        replace(NOBODY, inputs=1, cost=750, adapter_inputs=1, adapter_cost=750),
    ],
)
def test_a_full_queue_and_a_greedy_owner_are_refused(waiting: QueueState) -> None:
    with pytest.raises(QueueFullError):
        admission().check_room(10, waiting, 30)


def test_another_finds_the_room_that_the_greedy_one_had_to_leave() -> None:
    admission().check_room(10, replace(NOBODY, inputs=40, cost=801), 30)


def test_what_would_be_late_is_refused_until_it_would_not() -> None:
    """At 100 tokens per second, 3000 ahead take 30 s; three quarters of 20 s are allowed, so 15 s have to pass first."""
    some = Admission(
        max_batch_tokens=100, max_queue_tokens=10_000, max_queue_requests=50, max_input_passes=9, timeout_s=30
    )
    for tokens in (50, 100):
        some.pace.measure(tokens, tokens / 100, full=False, now=0)
    late = replace(NOBODY, inputs=1, cost=3000, ahead=3000)
    with pytest.raises(QueueFullError, match=r"in about 30\.1 s, but must be expected within 15\.0 s") as info:
        some.check_room(10, late, 20)
    assert info.value.retry_after_s == 16
    some.check_room(10, late, 41)


def test_whoever_finds_nobody_is_let_in_however_slow_the_worker_was() -> None:
    some = admission()
    some.pace.measure(1, 1000.0, full=False, now=0)
    some.check_room(10, NOBODY, 1)


async def test_a_flood_leaves_room_for_another_owner() -> None:
    async with bench(max_queue_requests=50) as b:
        held = await b.hold()
        flood = [b.submit(f"flood{i}", n_tokens=1, owner="flood") for i in range(60)]
        await settle()
        rare = b.submit("rare", owner="rare")
        answers = await b.release(held, *flood, rare)
        refused = sum(isinstance(answer, QueueFullError) for answer in answers)
        assert refused == 20
        assert answers[-1].result == "RARE"


async def test_an_owner_with_little_waiting_is_not_refused_for_another_ones_flood() -> None:
    """At 1000 tokens per second, 2000 of the flood take 2 s; the other owner's turn comes before them."""
    async with bench() as b:
        await measure(b, tokens_per_second=1000)
        held = await b.hold()
        flood = [b.submit(f"flood{i}", n_tokens=100, owner="flood") for i in range(20)]
        await settle()
        with pytest.raises(QueueFullError, match="The answer is expected in about"):
            await b.submit("more", n_tokens=100, owner="flood", timeout_s=1)
        rare = b.submit("rare", owner="rare", timeout_s=1)
        await asyncio.sleep(0)
        answers = await b.release(held, *flood, rare)
        assert not any(isinstance(answer, Exception) for answer in answers)


async def test_a_flood_over_five_adapters_leaves_room_for_another_client() -> None:
    async with bench(max_queue_requests=50) as b:
        held = await b.hold()
        flood = [b.submit(f"flood{i}", n_tokens=1, owner=Owner("flood", f"adapter{i % 5}")) for i in range(60)]
        await settle()
        rare = b.submit("rare", owner=Owner("rare", "adapter0"))
        answers = await b.release(held, *flood, rare)
        assert sum(isinstance(answer, QueueFullError) for answer in answers) == 20
        assert answers[-1].result == "RARE"


async def test_a_flood_at_one_adapter_leaves_room_for_its_clients_other_adapters() -> None:
    async with bench(max_queue_requests=50) as b:
        held = await b.hold()
        flood = [b.submit(f"flood{i}", n_tokens=1, owner=Owner("shop", "flooded")) for i in range(60)]
        await settle()
        rare = b.submit("rare", owner=Owner("shop", "rare"))
        answers = await b.release(held, *flood, rare)
        assert sum(isinstance(answer, QueueFullError) for answer in answers) == 22
        assert answers[-1].result == "RARE"


async def test_inputs_of_others_that_came_first_are_ahead_of_a_new_one() -> None:
    """At 1000 tokens per second, 2000 of twenty owners take 2 s, and all of them have their turn before a new owner."""
    async with bench() as b:
        await measure(b, tokens_per_second=1000)
        held = await b.hold()
        others = [b.submit(f"other{i}", n_tokens=100, owner=f"other{i}") for i in range(20)]
        await settle()
        with pytest.raises(QueueFullError, match="The answer is expected in about"):
            await b.submit("new", n_tokens=100, owner="new", timeout_s=1)
        answers = await b.release(held, *others)
        assert not any(isinstance(answer, Exception) for answer in answers)
