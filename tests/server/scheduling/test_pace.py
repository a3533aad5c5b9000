"""Estimates of how long work takes."""

import pytest

from blora.server.scheduling.pace import Pace


def pace_of(*passes: tuple[int, float]) -> Pace:
    pace = Pace(max_batch_tokens=1000)
    for tokens, seconds in passes:
        pace.measure(tokens, seconds, full=False, now=0)
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
    """Ten inputs of 40 x 8 take 50 ms each, and then a burst arrives that a large batch holds easily."""
    pace = Pace(max_batch_tokens=32768)
    for _ in range(10):
        pace.measure(320, 0.05, full=False, now=0)
    assert pace.seconds(256 * 300 * 8) == pytest.approx(19 * 0.05)


def test_passes_are_expected_as_full_as_they_have_been_while_others_waited() -> None:
    pace = Pace(max_batch_tokens=1000)
    for _ in range(50):
        pace.measure(250, 1.0, full=True, now=0)
        pace.measure(10, 1.0, full=False, now=0)
    assert pace.seconds(1000) == pytest.approx(4)


def test_the_usual_size_is_a_mean_that_comes_to_follow_the_latest_full_passes() -> None:
    """Each pass takes a second, so an estimate tells the number of passes."""
    pace = Pace(max_batch_tokens=1000)
    pace.measure(3000, 3.0, full=True, now=0)  # three passes
    assert pace.seconds(10**6) == 1000
    for tokens in (200, 300):
        pace.measure(tokens, 1.0, full=True, now=0)
    assert pace.seconds(10**6) == 2000
    for _ in range(17):
        pace.measure(500, 1.0, full=True, now=0)
    for _ in range(20):
        pace.measure(900, 1.0, full=True, now=0)  # each moves it by a twentieth of the way
    assert 10**6 / pace.seconds(10**6) == pytest.approx(900 - 400 * 0.95**20, rel=1e-3)


def test_a_pace_follows_what_it_measures() -> None:
    pace = pace_of(*((tokens, tokens / 100) for tokens in (100, 500, 1000)))
    for _ in range(100):
        for tokens in (100, 500, 1000):
            pace.measure(tokens, tokens / 200, full=False, now=0)
    assert pace.seconds(2000) == pytest.approx(10, rel=0.01)


def test_a_pass_unlike_all_others_bends_no_estimate() -> None:
    """Ordinary passes at 1 ms a token, and one of 31,200 tokens in 158 s: a burst of 60 is expected to take 24 s."""
    pace = Pace(max_batch_tokens=4096)
    for i in range(40):
        tokens = 200 + 50 * (i % 8)
        pace.measure(tokens, tokens / 1000, full=False, now=0)
    before = pace.seconds(60 * 400)
    pace.measure(31_200, 158.0, full=False, now=0)
    assert pace.seconds(60 * 400) == pytest.approx(before, rel=0.05)


def test_a_slow_first_pass_bends_no_estimate_once_others_are_known() -> None:
    pace = pace_of((400, 60.0), *((400, 0.4) for _ in range(8)))
    assert pace.seconds(400) == pytest.approx(0.4)
    assert pace.seconds(4000) < 2


def test_a_run_of_several_passes_is_measured_by_the_pass() -> None:
    assert pace_of((4000, 8.0)).seconds(1000) == pytest.approx(2)
    assert pace_of((4000, 8.0), (500, 1.0)).seconds(2000) == pytest.approx(4)


def test_a_pace_is_not_known_by_a_few_passes() -> None:
    assert not pace_of(*((100, 1.0) for _ in range(7))).is_known(0)
    assert pace_of(*((100, 1.0) for _ in range(8))).is_known(0)


def test_noise_makes_no_pass_take_less_than_nothing() -> None:
    for passes in (((100, 1.0), (1000, 0.1)), ((100, 0.1), (1000, 10.0))):
        pace = pace_of(*passes)
        assert 0 < pace.seconds(10) <= pace.seconds(100) <= pace.seconds(5000)


def test_passes_of_nearly_one_size_tell_no_time_per_token() -> None:
    pace = pace_of(*((400 + 5 * i, 0.40 + 0.02 * i) for i in range(5)))
    assert pace.seconds(4000) == pytest.approx(4 * 0.44)


def test_half_of_the_passes_are_quicker_than_expected_even_where_long_ones_take_far_longer() -> None:
    passes = [(tokens, (tokens / 100) ** 2) for tokens in (100, 200, 400, 800)]
    pace = pace_of(*passes)
    assert [seconds < pace.seconds(tokens) for tokens, seconds in passes] == [True, True, False, False]


def test_the_speed_of_the_moment_is_that_of_the_last_passes() -> None:
    pace = pace_of(*((tokens, 0.05) for tokens in (100, 500, 1000) for _ in range(20)))
    assert pace.seconds_now(1000) == pytest.approx(0.05)
    for _ in range(5):
        pace.measure(1000, 1.5, full=False, now=0)
    assert pace.seconds_now(1000) == pytest.approx(1.5)
    assert pace.seconds(1000) == pytest.approx(0.05)


def test_a_pass_unlike_all_others_is_not_the_speed_of_the_moment() -> None:
    pace = pace_of(*((400, 0.4) for _ in range(20)), (400, 60.0))
    assert pace.seconds_now(400) == pytest.approx(0.4)


def test_three_passes_are_the_moment_however_long_they_take() -> None:
    pace = pace_of(*((400, 1.0) for _ in range(20)), *((400, 6.0) for _ in range(3)))
    assert pace.seconds_now(400) == pytest.approx(6)
    assert pace.seconds(400) == pytest.approx(1)


def test_two_quick_passes_are_not_the_moment_yet() -> None:
    """The last five seconds of work are those of six passes."""
    pace = pace_of(*((400, 0.5) for _ in range(20)), *((400, 1.0) for _ in range(4)), (400, 0.5), (400, 0.5))
    assert pace.seconds_now(400) == pytest.approx(2 * pace.seconds(400))


def test_passes_that_take_no_time_have_no_speed() -> None:
    assert pace_of((400, 0.0), (200, 0.0)).seconds_now(400) == 0


def test_a_pace_is_known_for_a_minute_after_a_pass() -> None:
    pace = pace_of(*((400, 0.4) for _ in range(8)))
    assert pace.is_known(59)
    assert not pace.is_known(61)
    pace.measure(400, 0.4, full=False, now=1000)
    assert pace.is_known(1059)
    assert not pace.is_known(1061)
