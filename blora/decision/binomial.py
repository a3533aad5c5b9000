"""Exact binomial mathematics: the lower tail, and the bound of a probability that follows from it.

References:
    Clopper and Pearson, 1934.
"""

import math

__all__ = ["binomial_cdf", "clopper_pearson"]

# A term of the sum this much smaller than the sum changes nothing.
NEGLIGIBLE = 1e-18


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), summed exactly from the terms next to k outwards.

    >>> round(binomial_cdf(1, 3, 0.5), 12)
    0.5
    """
    if k < 0 or k >= n:
        return float(k >= n)
    if p <= 0 or p >= 1:
        return float(p <= 0)
    lower = k <= n * p
    at = k if lower else k + 1
    log_pmf = math.lgamma(n + 1) - math.lgamma(at + 1) - math.lgamma(n - at + 1)
    term = math.exp(log_pmf + at * math.log(p) + (n - at) * math.log1p(-p))
    total, odds = 0.0, p / (1 - p)
    while term > NEGLIGIBLE * total:
        total += term
        if lower:
            term *= at / ((n - at + 1) * odds)
            at -= 1
        else:
            term *= (n - at) * odds / (at + 1)
            at += 1
    return min(1.0, total) if lower else max(0.0, 1 - total)


def clopper_pearson(k: int, n: int, delta: float) -> float:
    """The exact upper bound of a probability after k events in n trials, too low with a probability of at most delta.

    >>> round(clopper_pearson(0, 59, 0.05), 4)
    0.0495
    """
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if binomial_cdf(k, n, middle) <= delta else (middle, high)
    return high
