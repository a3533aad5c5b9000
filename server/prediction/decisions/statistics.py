"""Summaries of a distribution over choices or levels, as the decision protocols define them."""

from collections.abc import Sequence

__all__ = ["concentration", "expected_level", "level_confidence"]


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
