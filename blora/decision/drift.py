"""Whether the questions of today look like those of the calibration, judged by how uncertain the answers are."""

import math
from collections import deque

import torch

from blora.decision.histogram import Histogram, entropy_histogram

__all__ = ["DriftWindow", "population_stability_index"]

# Neighbouring bins are joined until they hold a tenth of what is expected: emptier ones are mostly noise.
LEAST_SHARE = 0.1
WINDOW, LEAST, STEP = 1000, 200, 20


def population_stability_index(expected: tuple[int, ...], observed: tuple[int, ...]) -> float:
    """Sum of (o - e) ln(o / e) over the shares of each bin, half a count added to all: 0 where they agree.

    By custom up to 0.1 is no shift to speak of, above 0.25 a large one. Of n and m counts in B bins that agree, chance
    makes about (B - 1)(1/n + 1/m).

    >>> population_stability_index((50, 50), (500, 500))
    0.0
    >>> round(population_stability_index((50, 50), (90, 10)), 2)
    0.85
    """
    pairs = zip(_shares(expected), _shares(observed), strict=True)
    return math.fsum((o - e) * math.log(o / e) for e, o in pairs)


class DriftWindow:
    """The predictive entropies of the last thousand answers beside those of the calibration.

    Args:
        calibration: their histogram at calibration.
    """

    def __init__(self, calibration: Histogram) -> None:
        self._n_choices = round(math.exp(calibration.edges[-1]))
        self._groups = _groups(calibration.counts)
        self._expected = self._grouped(calibration.counts)
        self._entropies: deque[float] = deque(maxlen=WINDOW)
        self._n_added = 0

    def add(self, predictive_entropy: float) -> None:
        """One more answer, in nats; the oldest leaves."""
        self._entropies.append(predictive_entropy)
        self._n_added += 1

    @property
    def due(self) -> bool:
        """Return whether it is worth another look, every twentieth time: one answer more or less changes little."""
        return self._n_added % STEP == 0

    def index(self) -> float | None:
        """The population stability index, None before there are 200 answers."""
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
    """The group of each bin: each has its share but the last, and the first where nothing is expected so low."""
    least = max(1.0, LEAST_SHARE * sum(counts))
    first = next((index for index, count in enumerate(counts) if count), 0)
    groups, current, held = [0] * first, int(first > 0), 0
    for count in counts[first:]:
        if held >= least:
            current, held = current + 1, 0
        groups.append(current)
        held += count
    return groups
