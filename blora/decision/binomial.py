"""Exact binomial statistics: the lower tail probability, and what follows from it for bounds of a probability.

References:
    Clopper and Pearson, 1934.
"""

import math

from scipy.special import betaincc, betainccinv

__all__ = ["binomial_cdf", "clopper_pearson", "trials_without_event"]


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X ~ Binomial(n, p).

    >>> round(binomial_cdf(1, 3, 0.5), 12)
    0.5
    """
    if k < 0 or k >= n:
        return float(k >= n)
    return float(betaincc(k + 1, n - k, min(max(p, 0.0), 1.0)))


def clopper_pearson(k: int, n: int, delta: float) -> float:
    """Return the exact upper confidence bound of a probability at level 1 - delta, after k events in n trials.

    >>> round(clopper_pearson(0, 59, 0.05), 4)
    0.0495
    """
    return float(betainccinv(k + 1, n - k, delta)) if k < n else 1.0


def trials_without_event(bound: float, delta: float) -> int:
    """Return the smallest number of trials that prove a bound of a probability at level delta if no event occurs.

    >>> trials_without_event(0.05, 0.05), trials_without_event(0.05, 0.01)
    (59, 90)
    """
    return math.ceil(math.log(delta) / math.log1p(-bound))
