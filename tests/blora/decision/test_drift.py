"""The test of drift: how seldom it accuses familiar questions, how soon it notices others, and how it counts."""

import math
import random
from statistics import median

import pytest
import torch

from blora.decision.drift import ALPHA, DriftTest, Seen
from blora.decision.gate import Gate
from blora.errors import ConfigError

N_ROWS, MAX_SHARE = 379, 0.05


def share_beyond(generator: torch.Generator) -> float:
    """Share of familiar questions beyond a gate proved by rows of uniform distances."""
    gate = Gate.of(torch.rand(N_ROWS, generator=generator, dtype=torch.float64), MAX_SHARE, 0.05)
    return 1 - gate.distance


def noticed_after(share: float, n: int, chance: random.Random, quiet: float = 0, n_quiet: int = 0) -> int | None:
    """Answers after the quiet ones at which a stream is accused, None within n."""
    test, n_unfamiliar = DriftTest(MAX_SHARE), 0
    for k in range(n_quiet + n):
        n_unfamiliar += chance.random() < (share if k >= n_quiet else quiet)
        test.observe(Seen(k + 1, n_unfamiliar))
        if test.noticed and k >= n_quiet:
            return k + 1 - n_quiet
    return None


def test_of_a_thousand_familiar_streams_at_most_one_in_twenty_is_accused() -> None:
    generator, chance = torch.Generator().manual_seed(0), random.Random(0)
    accused = [noticed_after(share_beyond(generator), 1000, chance) is not None for _ in range(1000)]
    assert sum(accused) <= 50


def test_a_share_at_the_limit_is_accused_once_in_twenty() -> None:
    chance = random.Random(1)
    accused = [noticed_after(MAX_SHARE, 2000, chance) is not None for _ in range(400)]
    assert sum(accused) <= 20 + 3 * math.sqrt(400 * ALPHA * (1 - ALPHA))


# One question in five is foreign, of which the gate finds 68 % or 93 %, at once or after 10,000 others.
@pytest.mark.parametrize(
    ("found", "n_quiet", "most"), [(0.68, 0, 60), (0.93, 0, 40), (0.68, 10_000, 300), (0.93, 10_000, 200)]
)
def test_one_foreign_question_in_five_is_noticed(found: float, n_quiet: int, most: int) -> None:
    generator, chance = torch.Generator().manual_seed(2), random.Random(2)
    times = []
    for _ in range(101 if n_quiet == 0 else 21):
        quiet = share_beyond(generator)
        noticed = noticed_after(0.8 * quiet + 0.2 * found, 5000, chance, quiet, n_quiet)
        assert noticed is not None
        times.append(noticed)
    assert median(times) <= most


@pytest.mark.parametrize("limit", [MAX_SHARE, 0.5, 0.99])
def test_the_wealth_is_a_supermartingale_where_the_share_is_at_most_the_limit(limit: float) -> None:
    for share in (limit / 5, limit):
        test = DriftTest(limit)
        seen = Seen()
        for k in range(30):
            after = []
            for unfamiliar in (0, 1):
                branch = DriftTest(limit)
                branch._logs, branch._n_looks, branch._seen = list(test._logs), test._n_looks, seen
                branch.observe(seen + Seen(1, unfamiliar))
                after.append(branch.wealth)
            expected = (1 - share) * after[0] + share * after[1]
            assert expected <= test.wealth + 1e-12
            assert expected == pytest.approx(test.wealth) or share < limit
            seen += Seen(1, int(k % 7 == 0))
            test.observe(seen)


def test_the_wealth_is_limited_and_falls_once_questions_are_familiar_again() -> None:
    test, seen = DriftTest(MAX_SHARE), Seen()
    for _ in range(5000):
        seen += Seen(1, 1)
        test.observe(seen)
    assert 1e3 < test.wealth <= 1e4 + 1
    for _ in range(600):
        seen += Seen(1, 0)
        test.observe(seen)
    assert not test.noticed


@pytest.mark.parametrize("lost", [Seen(10, 5), Seen(10, 1), Seen(250, 0), Seen(101, 6)])
def test_a_block_is_what_its_answers_are_together_and_lost_counts_are_no_bet(lost: Seen) -> None:
    one, other = DriftTest(MAX_SHARE), DriftTest(MAX_SHARE)
    for test in (one, other):
        test.observe(Seen(100, 4))
    before = other.wealth
    other.observe(lost)
    assert other.wealth == before
    one.observe(Seen(110, 9))
    other.observe(lost + Seen(10, 5))
    assert one.wealth == other.wealth


def test_a_long_history_is_taken_at_once() -> None:
    test = DriftTest(MAX_SHARE)
    assert test.wealth == 1
    test.observe(Seen(10_000_000, 5_000_000))
    assert test.noticed
    test.observe(Seen(1_000_000_000, 5_000_000))
    assert test.wealth == pytest.approx(1 / 3, abs=0.2)


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="a number between 0 and 1"):
        DriftTest(share)
