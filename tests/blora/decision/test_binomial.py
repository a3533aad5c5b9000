import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.decision.binomial import binomial_cdf, clopper_pearson


def exact_cdf(k: int, n: int, p: Fraction) -> float:
    return float(sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)))


@given(st.integers(1, 120), st.integers(-1, 121), st.fractions(0, 1, max_denominator=97))
def test_the_tail_is_the_sum_of_exact_fractions(n: int, k: int, p: Fraction) -> None:
    expected = 1.0 if k >= n else exact_cdf(k, n, p)
    assert binomial_cdf(k, n, float(p)) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_large_tail_is_that_of_the_normal_limit() -> None:
    n, p = 1_000_000, 0.3
    for z in (-3, -1, 0, 1, 3):
        k = n * p + z * math.sqrt(n * p * (1 - p))
        # With the correction for continuity the error of the limit is of order 1 / sqrt(n).
        normal = 0.5 * math.erfc(-(math.floor(k) + 0.5 - n * p) / math.sqrt(2 * n * p * (1 - p)))
        assert binomial_cdf(math.floor(k), n, p) == pytest.approx(normal, abs=2e-4)


@pytest.mark.parametrize(
    ("k", "n", "delta", "bound"),
    [
        # Closed forms where k is 0 or n - 1; between, the equation solved with mpmath.
        (0, 10, 0.05, 0.2588656),
        (1, 10, 0.05, 0.3941633),
        (5, 10, 0.05, 0.7775589),
        (9, 10, 0.05, 0.9948838),
        (10, 10, 0.05, 1.0),
        (0, 59, 0.05, 1 - 0.05 ** (1 / 59)),
        (0, 1, 0.1, 0.9),
    ],
)
def test_the_upper_bound_has_its_known_values(k: int, n: int, delta: float, bound: float) -> None:
    assert clopper_pearson(k, n, delta) == pytest.approx(bound, abs=1e-7)


@given(st.integers(1, 400), st.data(), st.sampled_from([0.01, 0.05, 0.3]))
def test_the_bound_is_where_the_tail_is_delta(n: int, data: st.DataObject, delta: float) -> None:
    k = data.draw(st.integers(0, n - 1))
    bound = clopper_pearson(k, n, delta)
    assert binomial_cdf(k, n, bound) == pytest.approx(delta, rel=1e-6)
    assert bound > k / n


@pytest.mark.parametrize("p", [0.02, 0.1, 0.37])
def test_the_bound_is_too_low_as_rarely_as_it_says(p: float) -> None:
    n, delta = 40, 0.1
    missed = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if clopper_pearson(k, n, delta) < p)
    assert missed <= delta
