"""Summaries of a distribution over choices or levels, as the decision protocols define them."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean

__all__ = ["concentration", "expected_level", "level_confidence", "level_std"]


def concentration(probs: Sequence[float]) -> float:
    """Return the lead of the largest of K probabilities over 1 / K, as a share of the largest possible lead.

    >>> concentration([0.25, 0.75]), concentration([0.5, 0.5])
    (0.5, 0.0)
    """
    uniform = 1 / len(probs)
    return min(1.0, max(0.0, (max(probs) - uniform) / (1 - uniform)))


def expected_level(probs: Sequence[float]) -> float:
    """Return the mean level, counted from 0.

    >>> expected_level([0.25, 0.5, 0.25])
    1.0
    """
    return sum(level * probability for level, probability in enumerate(probs))


def level_std(samples: Sequence[Sequence[float]], places: Sequence[int]) -> float:
    """Return the population standard deviation over draws of the mean level.

    Args:
        samples: (S, K) probabilities under each draw.
        places: the place of each level among the K probabilities, from level 0 up.

    >>> level_std([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    0.5
    """
    levels = [expected_level([draw[place] for place in places]) for draw in samples]
    mean = fmean(levels)
    return sqrt(fmean((level - mean) ** 2 for level in levels))


def level_confidence(probs: Sequence[float]) -> float:
    """Return one minus the expected distance from the most probable level, over that of a uniform distribution.

    A distribution that is further apart than a uniform one has 0.

    >>> level_confidence([0.0, 1.0, 0.0]), level_confidence([0.5, 0.0, 0.5])
    (1.0, 0.0)
    """
    mode = max(range(len(probs)), key=probs.__getitem__)
    distances = [abs(level - mode) for level in range(len(probs))]
    expected = sum(distance * probability for distance, probability in zip(distances, probs, strict=True))
    return min(1.0, max(0.0, 1 - expected * len(probs) / sum(distances)))
