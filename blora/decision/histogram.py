"""Histograms of predictive entropies, for comparing later questions with the calibration."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from blora.checks import require

__all__ = ["Histogram", "entropy_edges", "entropy_histogram"]

N_ENTROPY_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of values between ascending edges, with one edge more than counts."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    edges: tuple[float, ...]
    counts: tuple[Annotated[int, Field(le=2**53)], ...]

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in pairwise(self.edges))
        require(
            bool(self.counts) and len(self.edges) == len(self.counts) + 1 and ascending,
            f"{len(self.edges)} edges of {len(self.counts)} counts",
            "some counts, and ascending edges, one more than counts",
        )
        require(min(self.counts) >= 0, f"a count of {min(self.counts)}", "none below 0")


def entropy_edges(n_choices: int) -> tuple[float, ...]:
    """Return the 21 edges of 20 equal bins from 0 to ln C, the largest entropy of C choices, in nats."""
    return tuple(index * math.log(n_choices) / N_ENTROPY_BINS for index in range(N_ENTROPY_BINS + 1))


def entropy_histogram(entropies: Tensor, n_choices: int) -> Histogram:
    """Return the histogram of entropies (N,), in nats, with the edges of `entropy_edges`.

    >>> entropy_histogram(torch.tensor([0.0, 0.01, 0.69]), 2).counts[::19]
    (2, 1)
    """
    edges = entropy_edges(n_choices)
    groups = torch.bucketize(entropies.double(), torch.tensor(edges[1:-1], dtype=torch.float64))
    return Histogram(edges=edges, counts=tuple(groups.bincount(minlength=N_ENTROPY_BINS).tolist()))
