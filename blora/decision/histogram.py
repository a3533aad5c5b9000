"""A histogram of predictive entropies, which later questions can be compared with."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from blora.errors import ConfigError

__all__ = ["Histogram", "entropy_histogram"]

N_BINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts between ascending edges, of which there is one more."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1 or any(low >= high for low, high in pairwise(self.edges)):
            raise ConfigError(
                f"got {len(self.edges)} edges of {len(self.counts)} counts, expected ascending, one more than counts"
            )
        if any(count < 0 for count in self.counts):
            raise ConfigError(f"got counts {self.counts}, expected none below 0")


def entropy_histogram(entropies: Tensor, n_choices: int) -> Histogram:
    """Counts of entropies (N,), in nats, in 20 equal bins from 0 to ln C, the most that C choices can have.

    >>> entropy_histogram(torch.tensor([0.0, 0.01, 0.69]), 2).counts[::19]
    (2, 1)
    """
    edges = [index * math.log(n_choices) / N_BINS for index in range(N_BINS + 1)]
    groups = torch.bucketize(entropies.double(), torch.tensor(edges[1:-1], dtype=torch.float64))
    return Histogram(edges=tuple(edges), counts=tuple(groups.bincount(minlength=N_BINS).tolist()))
