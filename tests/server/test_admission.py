"""Who may wait: what finds room, what leaves room, and what can be answered in time."""

import asyncio
from dataclasses import replace

import pytest

from blora.server.admission import Admission, Pace, Waiting
from blora.server.errors import QueueFullError, TooLargeError
from tests.server.test_batcher import bench, settle

NOBODY = Waiting(inputs=0, cost=0, own_inputs=0, own_cost=0, ahead=0)


def admission() -> Admission:
    return Admission(max_batch_tokens=100, max_queue_tokens=1000, max_queue_requests=50)


def pace_of(*passes: tuple[int, float]) -> Pace:
    pace = Pace(max_batch_tokens=1000)
    for tokens, seconds in passes:
        pace.measure(tokens, seconds, full=False)
    return pace


def test_a_pace_that_is_not_known_expects_no_wait() -> None:
    assert pace_of().seconds(1000) == 0


def test_where_tokens_take_time_they_are_counted() -> None:
    pace = pace_of(*((tokens, tokens / 100) for tokens in (100, 500, 1000, 300)))
    assert pace.seconds(2000) == pytest.approx(20)
    assert pace.seconds(50) == pytest.approx(0.5)


def test_where_passes_take_time_they_are_counted() -> None:
    pace = pace_of(*((tokens, 0.05) for tokens in (10, 20, 30)))
    assert pace.seconds(30) == pytest.approx(0.05)
    assert pace.seconds(10_000) == pytest.approx(0.5)


def test_where_both_take_time_both_are_counted() -> None:
    pace = pace_of(*((tokens, 0.05 + tokens / 1000) for tokens in (10, 500, 1000)))
    assert pace.seconds(2000) == pytest.approx(0.1 + 2)


def test_small_passes_alone_refuse_no_burst() -> None:
    """Ten inputs of 40 x 8 in 50 ms each, and then a burst of what a large batch holds easily."""
    pace = Pace(max_batch_tokens=32768)
    for _ in range(10):
        pace.measure(320, 0.05, full=False)
    assert pace.seconds(256 * 300 * 8) == pytest.approx(19 * 0.05)


def test_passes_are_expected_as_full_as_they_have_been_while_others_waited() -> None:
    pace = Pace(max_batch_tokens=1000)
    for _ in range(50):
        pace.measure(250, 1.0, full=True)
        pace.measure(10, 1.0, full=False)
    assert pace.seconds(1000) == pytest.approx(4)


def test_a_pace_follows_what_it_measures() -> None:
    pace = pace_of(*((tokens, tokens / 100) for tokens in (100, 500, 1000)))
    for _ in range(100):
        for tokens in (100, 500, 1000):
            pace.measure(tokens, tokens / 200, full=False)
    assert pace.seconds(2000) == pytest.approx(10, rel=0.01)


def test_noise_makes_no_pass_take_less_than_nothing() -> None:
    for passes in (((100, 1.0), (1000, 0.1)), ((100, 0.1), (1000, 10.0))):
        pace = pace_of(*passes)
        assert 0 < pace.seconds(10) <= pace.seconds(100) <= pace.seconds(5000)


@pytest.mark.parametrize(("n_tokens", "n_draws"), [(101, 1), (100, 11)])
def test_what_never_fits_is_told_so(n_tokens: int, n_draws: int) -> None:
    with pytest.raises(TooLargeError):
        admission().check_size(n_tokens, n_draws)


def test_what_just_fits_is_let_in() -> None:
    admission().check_size(100, 10)
    admission().check_room(1000, NOBODY, 30)


@pytest.mark.parametrize(
    "waiting",
    [
        replace(NOBODY, inputs=50, cost=50),
        replace(NOBODY, inputs=1, cost=991),
        # Of 50, 10 are free, and four times these are held already.
        replace(NOBODY, inputs=40, cost=40, own_inputs=40, own_cost=40),
        # Four times 199 is less than 801.
        replace(NOBODY, inputs=1, cost=801, own_inputs=1, own_cost=801),
    ],
)
def test_a_full_queue_and_a_greedy_owner_are_refused(waiting: Waiting) -> None:
    with pytest.raises(QueueFullError):
        admission().check_room(10, waiting, 30)


def test_another_finds_the_room_that_the_greedy_one_had_to_leave() -> None:
    admission().check_room(10, replace(NOBODY, inputs=40, cost=801), 30)


def test_what_would_be_late_is_refused_until_it_would_not() -> None:
    """100 tokens a second: 3000 ahead take 30 s, of which three quarters of 20 s may pass, and 15 have to go by."""
    some = Admission(max_batch_tokens=100, max_queue_tokens=10_000, max_queue_requests=50)
    for tokens in (50, 100):
        some.pace.measure(tokens, tokens / 100, full=False)
    late = replace(NOBODY, inputs=1, cost=3000, ahead=3000)
    with pytest.raises(QueueFullError, match=r"wait of about 30\.1 s, expected at most 15\.0 s") as info:
        some.check_room(10, late, 20)
    assert info.value.retry_after_s == 16
    some.check_room(10, late, 41)


def test_whoever_finds_nobody_is_let_in_however_slow_the_worker_was() -> None:
    some = admission()
    some.pace.measure(1, 1000.0, full=False)
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
    """At 1000 tokens a second 2000 of the flood take 2 s; the other one's turn comes before them."""
    async with bench() as b:
        for n_tokens in (50, 100):
            b.worker.seconds = n_tokens / 1000
            await b.submit("measured", n_tokens=n_tokens)
        b.worker.seconds = 0
        held = await b.hold()
        flood = [b.submit(f"flood{i}", n_tokens=100, owner="flood") for i in range(20)]
        await settle()
        with pytest.raises(QueueFullError, match="got a wait of about"):
            await b.submit("more", n_tokens=100, owner="flood", timeout_s=1)
        rare = b.submit("rare", owner="rare", timeout_s=1)
        await asyncio.sleep(0)
        answers = await b.release(held, *flood, rare)
        assert not any(isinstance(answer, Exception) for answer in answers)
