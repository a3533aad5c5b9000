"""Drift detection: comparison of recent predictive entropies with their distribution at calibration."""

import math
from collections import deque

import torch

from blora.decision.histogram import Histogram, entropy_histogram

__all__ = ["DriftWindow", "population_stability_index"]

# Neighbouring bins are joined until each holds a tenth of the expected counts; emptier bins are mostly noise.
LEAST_SHARE = 0.1
WINDOW, LEAST, STEP = 1000, 200, 20


def population_stability_index(expected: tuple[int, ...], observed: tuple[int, ...]) -> float:
    """Return the sum of (o - e) ln(o / e) over the shares of each bin; 0 means that the shares agree.

    Half a count is added to each bin. By convention an index up to 0.1 means no notable shift, above 0.25 a large one.
    For n and m counts of the same distribution in B bins, the expected index is about (B - 1)(1/n + 1/m).

    >>> population_stability_index((50, 50), (500, 500))
    0.0
    >>> round(population_stability_index((50, 50), (90, 10)), 2)
    0.85
    """
    pairs = zip(_shares(expected), _shares(observed), strict=True)
    return math.fsum((o - e) * math.log(o / e) for e, o in pairs)


class DriftWindow:
    """Sliding window over the predictive entropies of the last thousand answers, compared with the calibration.

    Args:
        calibration: histogram of the predictive entropies at calibration.
    """

    def __init__(self, calibration: Histogram) -> None:
        self._n_choices = round(math.exp(calibration.edges[-1]))
        self._groups = _groups(calibration.counts)
        self._expected = self._grouped(calibration.counts)
        self._entropies: deque[float] = deque(maxlen=WINDOW)
        self._n_added = 0

    def add(self, predictive_entropy: float) -> None:
        """Add an answer's predictive entropy in nats; a full window drops the oldest."""
        self._entropies.append(predictive_entropy)
        self._n_added += 1

    @property
    def due(self) -> bool:
        """Return whether the index is due: after every twentieth answer, since single answers change it little."""
        return self._n_added % STEP == 0

    def index(self) -> float | None:
        """Return the population stability index, or None before there are 200 answers."""
        if len(self._entropies) < LEAST:
            return None
        observed = entropy_histogram(torch.tensor(list(self._entropies)), self._n_choices)
        return population_stability_index(self._expected, self._grouped(observed.counts))

    def _grouped(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        joined = [0] * (max(self._groups) + 1)
        for group, count in zip(self._groups, counts, strict=True):
            joined[group] += count
        return tuple(joined)


def _shares(counts: tuple[int, ...]) -> list[float]:
    total = sum(counts) + 0.5 * len(counts)
    return [(count + 0.5) / total for count in counts]


def _groups(counts: tuple[int, ...]) -> list[int]:
    """Return the group of each bin.

    Groups are formed from the lowest bin up and closed at LEAST_SHARE of the counts, so the last one may hold less.
    Empty bins at the low end are a group of their own, with no expected counts.
    """
    least = max(1.0, LEAST_SHARE * sum(counts))
    first = next((index for index, count in enumerate(counts) if count), 0)
    groups, current, held = [0] * first, int(first > 0), 0
    for count in counts[first:]:
        if held >= least:
            current, held = current + 1, 0
        groups.append(current)
        held += count
    return groups
