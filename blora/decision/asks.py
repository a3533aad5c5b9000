"""The record of asks, attempts to prove a target on calibration rows, and their total error probability.

Each ask proves a false target with probability at most delta. By the union bound, the probability that any of several
asks of the same rows does is at most the sum of their deltas, provided that the targets were planned and not chosen
after looking at these rows. A refused ask counts like any other. A repeated ask has the same result and counts once; in
another dtype, or of other contents of the adapter, the result may differ, so that the same target is another ask there.
Through vLLM every repetition is another ask: its states depend on what it computes at the same time, and on its own
dtype and quantisation.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from blora.config.checks import require
from blora.questions.fingerprints import DIGITS, are_fingerprints, parts
from blora.scores import ScoreName

__all__ = ["VLLM", "Ask", "AskedRows", "check_total", "earlier_asks", "total_delta"]

# In place of a dtype for vLLM, whose arithmetic differs from ours in any precision.
VLLM = "vllm"

# The smallest delta of an ask: totals are stated to 12 decimal places.
LEAST_DELTA = 1e-9

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """An attempt to prove a target.

    Attributes:
        target_risk: the largest allowed selective error.
        delta: the largest probability that this ask proves a false target, from 1e-9 to 0.5.
        seed: seed of the division of the rows into tuning and proof part.
        score: the score for the threshold; None if the tuning part chose the score.
        max_false_alarms: the largest allowed share of familiar questions beyond the gate; 1 for no gate.
        max_missed: for each choice, the largest allowed share of its questions that get another answer; 1 for any.
        dtype: dtype of the base model, or `VLLM`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    target_risk: float
    delta: float
    seed: int
    dtype: str
    score: ScoreName | None = None
    max_false_alarms: float = 1.0
    max_missed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_false_alarms", "max_missed"):
            share = getattr(self, name)
            require(0 < share <= 1, f"{name} = {share}", "a share above 0, at most 1")
        require(0 < self.target_risk < 1, f"target_risk = {self.target_risk}", "a number between 0 and 1")
        expected = f"a number from {LEAST_DELTA:g} to 0.5: choose one of these, such as 0.05"
        require(LEAST_DELTA <= self.delta <= 0.5, f"delta = {self.delta}", expected)
        require(0 <= self.seed < 2**63, f"seed = {self.seed}", "0 to 2^63 - 1")
        require(bool(self.dtype), "dtype = ''", "the dtype of the base model")

    @property
    def repeatable(self) -> bool:
        """Return whether the same ask of the same rows and contents has the same result."""
        return self.dtype != VLLM


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRows:
    """Calibration rows, and the asks of an adapter's contents that used them.

    Attributes:
        adapter_digest: digest of the adapter's contents.
        digest: digest of the data as read.
        n_rows: number of rows, each about another text, from the start of the data.
        fingerprints: fingerprints of the rows' questions, see `blora.questions.fingerprints`; empty if unknown.
        asks: the asks in order.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    adapter_digest: str
    digest: str
    n_rows: int
    fingerprints: str
    asks: tuple[Ask, ...]

    def __post_init__(self) -> None:
        require(are_fingerprints(self.fingerprints), "bad fingerprints of rows", f"{DIGITS} hex digits a row")

    def same(self, other: "AskedRows") -> bool:
        """Return whether the other record has the same rows and the same contents of the adapter."""
        mine, others = ((rows.adapter_digest, rows.digest, rows.n_rows) for rows in (self, other))
        return mine == others

    def overlaps(self, other: "AskedRows") -> bool:
        """Return whether the other record, of whatever contents of the adapter, shares a row."""
        return self.digest == other.digest or not set(parts(self.fingerprints)).isdisjoint(parts(other.fingerprints))


def total_delta(asks: Iterable[Ask]) -> float:
    """Return an upper bound of the probability that any of several asks proves a false target.

    >>> total_delta([Ask(target_risk=risk, delta=0.05, seed=0, dtype="float32") for risk in (0.15, 0.2)])
    0.1
    """
    return round(math.fsum(ask.delta for ask in asks), 12)


def earlier_asks(remembered: Iterable[AskedRows], rows: AskedRows, ask: Ask) -> tuple[Ask, ...]:
    """Return the earlier asks of overlapping rows, whose deltas add to the new ask's; not the one that it repeats.

    Args:
        remembered: all rows of earlier asks.
        rows: rows of the new ask.
        ask: the new ask.

    Raises:
        ConfigError: if the deltas add up to 1 or more, so that nothing would be guaranteed.
    """
    earlier = tuple(
        one
        for old in remembered
        if rows.overlaps(old)
        for one in old.asks
        if not (ask.repeatable and one == ask and rows.same(old))
    )
    check_total((*earlier, ask))
    return earlier


def check_total(asks: Sequence[Ask]) -> None:
    """Raise an error if the deltas of asks add up to 1 or more, which would guarantee nothing.

    Raises:
        ConfigError: if the deltas add up to 1 or more.
    """
    require(
        total_delta(asks) < 1,
        f"{len(asks)} calibration attempts on the same rows with a delta of {total_delta(asks):g} in total",
        "a total below 1: calibrate on rows that no attempt has used",
    )
