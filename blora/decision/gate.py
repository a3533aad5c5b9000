"""The gate: a threshold on the familiarity that is proved to withhold few familiar questions.

The gate closes beyond t, the (k + 1)-th largest of n reference distances. How often a familiar question lies beyond it
depends on no distribution: P(share beyond t > a) = P(Binomial(n, a) <= k) exactly, so that k is the largest number for
which this is at most delta. In terms of conformal p-values, a question lies beyond t if its p-value is below
(k + 2) / (n + 1).

The selective risk behind the gate is proved from the same rows. Given t, the rows nearer than t are independent draws
of the questions that pass the gate, as the order statistics of a sample are; they alone are counted, without the row
at t itself. Where t is a distance that many questions have, as those with one prompt and fixed choices do, not
counting the rows at t would leave these questions out of the proof. The gate is therefore at a distance that one
reference row alone has: a larger one, if need be, beyond which lie fewer than k rows.

References:
    Wilks, 1941: tolerance limits from order statistics.
    Bates et al., 2023, "Testing for outliers with conformal p-values". arXiv:2104.08279
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from blora.config.checks import require
from blora.config.head import MOST_REFERENCE
from blora.decision.binomial import binomial_cdf, trials_without_event
from blora.decision.selective import rows_for_proof
from blora.errors import ConfigError

__all__ = ["Gate", "alarms_allowed", "rows_behind_gate"]

# Distances that differ by less may be those of one prompt; in float32 they are computed to about 1e-6.
_EQUAL = 1e-4


def alarms_allowed(n: int, max_false_alarms: float, delta: float) -> int:
    """Return the largest number of n reference rows beyond the gate at which the share of false alarms is proved.

    The number is -1 if not even a gate beyond every row is proved.

    >>> [alarms_allowed(n, 0.05, 0.05) for n in (379, 59, 58)]
    [11, 0, -1]
    """
    low, high = -1, n  # proved at low, not at high; the lower tail rises with the number
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_cdf(middle, n, max_false_alarms) <= delta else (low, middle)
    return low


def rows_behind_gate(max_false_alarms: float, target_risk: float, delta: float) -> int:
    """Return the smallest number of rows that can prove a gate and, without a wrong answer, a target behind it.

    >>> rows_behind_gate(0.05, 0.05, 0.05), rows_behind_gate(1, 0.05, 0.05)
    (79, 78)
    """
    least = trials_without_event(target_risk, delta)
    if max_false_alarms == 1:
        return rows_for_proof(least)

    def behind(n: int) -> int:  # the row at the gate is not counted
        return n - 1 - alarms_allowed(n, max_false_alarms, delta)

    fewest = most = max(least, trials_without_event(max_false_alarms, delta))
    while behind(most) < least:
        most *= 2
    return rows_for_proof(bisect_left(range(most), least, lo=fewest, key=behind))  # one more row adds 0 or 1 behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A threshold on the familiarity, and what is proved of it.

    Attributes:
        max_false_alarms: largest share of familiar questions that the gate withholds.
        n_beyond: k, the number of reference rows beyond the gate.
        reference: distances of the rows that prove it, rising.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    max_false_alarms: Annotated[float, Field(gt=0, lt=1)]
    n_beyond: Annotated[int, Field(ge=0)]
    reference: Annotated[tuple[float, ...], Field(min_length=1, max_length=MOST_REFERENCE)]

    def __post_init__(self) -> None:
        n = len(self.reference)
        require(self.n_beyond < n, f"a gate with {self.n_beyond} of {n} rows beyond it", "fewer rows beyond it")
        require(list(self.reference) == sorted(self.reference), "reference distances out of order", "rising ones")

    @classmethod
    def of(cls, distances: Tensor, max_false_alarms: float, delta: float) -> "Gate":
        """Return the gate that reference rows prove; of very many rows the first ones serve.

        Args:
            distances: (n,) distances of independent draws of familiar questions, in an order that tells nothing.
            max_false_alarms: largest share of familiar questions to withhold.
            delta: largest probability that the gate withholds more.

        Raises:
            ConfigError: if there are too few rows, or the rows that could be the gate share their distances.
        """
        reference = distances[:MOST_REFERENCE].double().sort().values
        n = len(reference)
        if (n_beyond := alarms_allowed(n, max_false_alarms, delta)) < 0:
            needed = trials_without_event(max_false_alarms, delta)
            raise ConfigError(
                f"got {n} rows to prove max_false_alarms {max_false_alarms} at delta {delta}, expected at least "
                f"{needed}: bring more, or allow more; 1 withholds no question as unfamiliar"
            )
        gaps = reference.diff() > _EQUAL
        alone = torch.cat([gaps, gaps.new_ones(1)]) & torch.cat([gaps.new_ones(1), gaps])
        if not bool(alone[n - 1 - n_beyond :].any()):
            raise ConfigError(
                f"got {n_beyond + 1} rows, the farthest ones, that share their distances, as questions with the same "
                "prompt do, expected one with a distance of its own to place the gate at: allow max_false_alarms 1, "
                "which withholds no question as unfamiliar"
            )
        while not alone[n - 1 - n_beyond]:
            n_beyond -= 1
        return cls(max_false_alarms=max_false_alarms, n_beyond=n_beyond, reference=tuple(reference.tolist()))

    @property
    def distance(self) -> float:
        """The distance t beyond which the gate closes."""
        return self.reference[len(self.reference) - 1 - self.n_beyond]

    @property
    def min_familiarity(self) -> float:
        """The p-value below which a question lies beyond the gate."""
        return (self.n_beyond + 2) / (len(self.reference) + 1)
