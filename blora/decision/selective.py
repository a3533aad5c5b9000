"""A threshold on an uncertainty under which the selective error P(wrong | answered) is proved to be small.

Rows that played no part in making the adapter are divided at random, by a seed. The tuning part, a quarter, chooses a
score and puts the score's values into an order: first the threshold that is most likely to be proved, then ever looser
ones. The proof part tests along that order, each time exactly and at level delta, whether the selective error exceeds
the target, and stops at the first threshold for which that cannot be rejected. The last rejected one is taken.

The order is fixed before a score or a label of the proof part is seen, so this is fixed-sequence testing: a threshold
whose selective error exceeds the target is taken with a probability of at most delta, exactly and for any number of
rows. It is so for one target, one delta and one seed that were fixed beforehand, and for questions that come from where
the rows came from: the rows have to be independent draws of the questions to be answered.

References:
    Clopper and Pearson, 1934.
    Geifman and El-Yaniv, 2017. arXiv:1705.08500
    Angelopoulos et al., 2021, "Learn then Test". arXiv:2110.01052
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict
from torch import Tensor

from blora.decision.abstention import TOLERANCE, Policy
from blora.errors import ConfigError, ShapeError

__all__ = [
    "Evidence",
    "Level",
    "ScoreName",
    "best_target",
    "binomial_cdf",
    "certify",
    "clopper_pearson",
    "rows_for_proof",
    "rows_needed",
    "split_rows",
    "trust",
]

ScoreName = Literal["confidence", "predictive_entropy", "mutual_information"]
POLICY_FIELDS: dict[ScoreName, str] = {
    "confidence": "min_confidence",
    "predictive_entropy": "max_predictive_entropy",
    "mutual_information": "max_mutual_information",
}

MAX_CANDIDATES = 200
# Weight of all tuning rows in what is expected of those under one threshold.
PRIOR_ROWS = 2
# A term of the binomial sum this much smaller than the sum changes nothing.
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


def rows_for_proof(n_proof: int) -> int:
    """The fewest rows whose proof part holds `n_proof`."""
    return max(4, n_proof + (n_proof - 1) // 3)


def rows_needed(target_risk: float, delta: float) -> int:
    """The fewest rows with which a target can be proved, if not one answer is wrong."""
    return rows_for_proof(math.ceil(math.log(delta) / math.log1p(-target_risk)))


def split_rows(n_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the tuning part, a quarter, and of the proof part, in an order that depends on the seed alone.

    Raises:
        ConfigError: if there are fewer than four rows.
    """
    if n_rows < 4:
        raise ConfigError(f"got {n_rows} rows, expected at least 4: bring more")
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    return order[: n_rows // 4], order[n_rows // 4 :]


class Counts(NamedTuple):
    """Of one part under one threshold: how many rows are answered, and how many of these answers are wrong."""

    answered: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """The thresholds that one score may get, tightest first, in the score's own unit, and what each would do."""

    score: ScoreName
    thresholds: tuple[float, ...]
    tuning: tuple[Counts, ...]
    proof: tuple[Counts, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a proof looks at."""

    n_tuning: int
    n_proof: int
    candidates: tuple[Candidates, ...]

    @classmethod
    def gather(cls, scores: Mapping[ScoreName, Tensor], wrong: Tensor, *, seed: int) -> "Evidence":
        """Divides the rows and counts.

        Args:
            scores: (N,) values of each score that may be chosen; of equally good ones the first is.
            wrong: (N,) whether the most probable choice of each row is not the right one.
            seed: of the division into tuning and proof part.

        Raises:
            ShapeError: if the shapes differ.
            ConfigError: if there are too few rows to divide.
        """
        if any(values.shape != wrong.shape for values in scores.values()) or wrong.ndim != 1:
            raise ShapeError(
                f"got scores {[tuple(values.shape) for values in scores.values()]} and answers {tuple(wrong.shape)}, "
                "expected (N,) each"
            )
        tuning, proof = split_rows(len(wrong), seed)
        candidates = []
        for name, values in scores.items():
            uncertainty = -trust(name, values.double())
            limits = _spread(uncertainty[tuning].unique())
            candidates.append(
                Candidates(
                    name,
                    tuple(trust(name, -limits).tolist()),
                    _count(uncertainty[tuning], wrong[tuning], limits),
                    _count(uncertainty[proof], wrong[proof], limits),
                )
            )
        return cls(len(tuning), len(proof), tuple(candidates))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One target, and the threshold under which it was proved, if there is one.

    Attributes:
        target_risk: the selective error that is not to be exceeded.
        score: what the threshold is on, as the tuning part chose it.
        expected_coverage: the share of questions that the tuning part expected to be answered; 0 if it expected no
            proof to succeed.
        threshold: in the score's own unit; None if nothing was proved, and then so are the following.
        coverage: share of the proof part that is answered.
        error: share of these answers that are wrong.
        upper_bound: the Clopper-Pearson bound of their probability at level delta, at most target_risk. The guarantee
            is for target_risk: this bound was looked at more than once.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    target_risk: float
    score: ScoreName
    expected_coverage: float
    threshold: float | None = None
    coverage: float | None = None
    error: float | None = None
    upper_bound: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.target_risk < 1:
            raise ConfigError(f"got target_risk = {self.target_risk}, expected a number between 0 and 1")
        proved = (self.threshold, self.coverage, self.error, self.upper_bound)
        if any(value is None for value in proved) != all(value is None for value in proved):
            raise ConfigError(
                f"got a level for {self.target_risk} that is proved in part, expected all of threshold, coverage, "
                "error and upper_bound, or none"
            )
        for name in ("expected_coverage", "coverage", "error", "upper_bound"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"got {name} = {value} for target_risk {self.target_risk}, expected 0 to 1")
        if self.upper_bound is not None and self.upper_bound > self.target_risk + TOLERANCE:
            raise ConfigError(
                f"got upper_bound = {self.upper_bound} for target_risk {self.target_risk}, expected at most the target"
            )
        if self.threshold is not None:
            self.policy()

    def policy(self, source: Literal["request", "adapter"] = "adapter") -> Policy:
        """The threshold as a policy.

        Raises:
            ConfigError: if nothing was proved.
        """
        if self.threshold is None:
            raise ConfigError(f"got target_risk {self.target_risk}, expected one that was proved")
        return Policy(**{POLICY_FIELDS[self.score]: self.threshold}, source=source)

    def answers(self, values: Tensor) -> Tensor:
        """Which questions are answered, (N,) bool, given their values of the level's score; none if none was proved."""
        if self.threshold is None:
            return torch.zeros_like(values, dtype=torch.bool)
        limit = trust(self.score, torch.tensor(self.threshold, dtype=torch.float64))
        return trust(self.score, values.double()) >= limit - TOLERANCE


def certify(evidence: Evidence, *, target_risk: float, delta: float) -> Level:
    """The loosest threshold that is proved to keep the selective error at or below the target.

    Args:
        evidence: the divided rows.
        target_risk: the selective error not to be exceeded.
        delta: the probability with which it may be exceeded all the same.
    """
    plans = [(_plan(candidates, evidence, target_risk, delta), candidates) for candidates in evidence.candidates]
    plan, candidates = max(plans, key=lambda pair: (pair[0].coverage, -pair[0].p_value))
    level = Level(target_risk=target_risk, score=candidates.score, expected_coverage=plan.coverage)
    proved = list(
        takewhile(
            lambda index: _p_value(candidates.proof[index], target_risk) <= delta,
            range(plan.start, len(candidates.thresholds)),
        )
    )
    if not proved:
        return level
    counts = candidates.proof[proved[-1]]
    return replace(
        level,
        threshold=candidates.thresholds[proved[-1]],
        coverage=counts.answered / evidence.n_proof,
        error=counts.wrong / counts.answered,
        upper_bound=clopper_pearson(counts.wrong, counts.answered, delta),
    )


def best_target(evidence: Evidence, *, above: float, delta: float) -> float | None:
    """The smallest target above a refused one that these rows would have proved, in thousandths; None if none is.

    Whoever asks for it has seen the rows: as a new target it calls for new rows, or for another look at the risk.
    """

    def smallest(thousandths: range) -> int | None:
        found = (n for n in thousandths if certify(evidence, target_risk=n / 1000, delta=delta).threshold is not None)
        return next(found, None)

    first = math.floor(above * 1000 + TOLERANCE) + 1
    coarse = smallest(range(-(-first // 10) * 10, 1000, 10))
    fine = smallest(range(max(first, (coarse or 1000) - 9), coarse or 1000))
    best = fine or coarse
    return best / 1000 if best else None


class _Plan(NamedTuple):
    """Where along one score's thresholds testing starts, its expected p-value, and the coverage it should reach."""

    start: int
    p_value: float
    coverage: float


def _plan(candidates: Candidates, evidence: Evidence, target_risk: float, delta: float) -> _Plan:
    """What the tuning part expects of a score: its counts, scaled up to the proof part's size, give the p-values.

    The few rows under a tight threshold are lucky too easily, so errors are shrunk towards those of all rows.
    """
    scale = evidence.n_proof / evidence.n_tuning
    everything = candidates.tuning[-1]
    prior = PRIOR_ROWS * everything.wrong / everything.answered
    expected = []
    for counts in candidates.tuning:
        answered = round(counts.answered * scale)
        error = (counts.wrong + prior) / (counts.answered + PRIOR_ROWS)
        expected.append(_p_value(Counts(answered, round(error * answered)), target_risk))
    start = min(range(len(expected)), key=expected.__getitem__)
    reached = len(list(takewhile(lambda p_value: p_value <= delta, expected[start:])))
    coverage = candidates.tuning[start + reached - 1].answered / evidence.n_tuning if reached else 0.0
    return _Plan(start, expected[start], coverage)


def _p_value(counts: Counts, target_risk: float) -> float:
    """Of the hypothesis that a wrong answer is at least as probable as the target: how likely so few of them are."""
    return binomial_cdf(counts.wrong, counts.answered, target_risk) if counts.answered else 1.0


def trust(name: ScoreName, values: Tensor) -> Tensor:
    """A score's values, turned so that more is more certain."""
    return values if name == "confidence" else -values


def _spread(values: Tensor) -> Tensor:
    """At most MAX_CANDIDATES of the values, evenly spaced, the last one among them."""
    if len(values) <= MAX_CANDIDATES:
        return values
    return values[torch.linspace(0, len(values) - 1, MAX_CANDIDATES).round().long()]


def _count(uncertainty: Tensor, wrong: Tensor, limits: Tensor) -> tuple[Counts, ...]:
    """Answered and wrong rows under each limit; exactly at the limit is answered, as in `abstention.decide`."""
    ordered, order = uncertainty.sort()
    answered = torch.searchsorted(ordered, limits + TOLERANCE, right=True)
    errors = torch.cat([torch.zeros(1, dtype=torch.long), wrong[order].long().cumsum(0)])[answered]
    return tuple(map(Counts, answered.tolist(), errors.tolist()))
