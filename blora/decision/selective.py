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
    Geifman and El-Yaniv, 2017. arXiv:1705.08500
    Angelopoulos et al., 2021, "Learn then Test". arXiv:2110.01052
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict
from torch import Tensor

from blora.checks import require
from blora.decision.abstention import TOLERANCE, Policy
from blora.decision.binomial import binomial_cdf, clopper_pearson
from blora.decision.resolution import Resolution
from blora.errors import ShapeError
from blora.scores import SCORES, Score, ScoreName

__all__ = ["Evidence", "Level", "ScoreName", "Stage", "certify", "rows_for_proof", "rows_needed", "split_rows"]

MAX_CANDIDATES = 200
# Rows times thresholds that are counted at once.
CHUNK_ELEMENTS = 2**22
# Weight of all tuning rows in what is expected of those under one threshold.
PRIOR_ROWS = 2


def rows_for_proof(n_proof: int) -> int:
    """The fewest rows whose proof part holds `n_proof`."""
    return max(4, n_proof + (n_proof - 1) // 3)


def rows_needed(target_risk: float, delta: float) -> int:
    """The fewest rows with which a target can be proved, if not one answer is wrong."""
    return rows_for_proof(math.ceil(math.log(delta) / math.log1p(-target_risk)))


def split_rows(n_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the tuning part, a quarter, and of the proof part.

    The order is that of the sha256 of "seed,row" in decimals: it depends on every bit of the seed, and on neither the
    version of a library nor the machine, so that anyone can divide the rows again.

    Raises:
        ConfigError: if there are fewer than four rows.
    """
    require(n_rows >= 4, f"{n_rows} rows", "at least 4: bring more")
    order = sorted(range(n_rows), key=lambda row: hashlib.sha256(f"{seed},{row}".encode()).digest())
    return torch.tensor(order[: n_rows // 4]), torch.tensor(order[n_rows // 4 :])


class Counts(NamedTuple):
    """Of one part under one threshold: how many rows are answered, and how many of these answers are wrong."""

    answered: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Stage:
    """What N questions would be answered after some of the draws, or after all of them.

    Attributes:
        scores: (N,) values of each score that may be chosen; of equally good ones the first is.
        wrong: (N,) whether the most probable choice of each is not the right one.
        reach: (N,) for each score: a question whose score is within this of the threshold goes on to the next stage.
            The last stage has none, for it decides on all that are left.
    """

    scores: Mapping[ScoreName, Tensor]
    wrong: Tensor
    reach: Mapping[ScoreName, Tensor] = field(default_factory=dict)


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
    def gather(cls, stages: Sequence[Stage], *, seed: int, resolution: Resolution | None = None) -> "Evidence":
        """Divides the rows and counts.

        Args:
            stages: of the same rows, by rising number of draws; a single one where all draws are always seen.
            seed: of the division into tuning and proof part.
            resolution: of the thresholds; None takes the tuning part's values as they are.

        Raises:
            ShapeError: if the shapes differ.
            ConfigError: if there are too few rows to divide.
        """
        rows = stages[-1].wrong
        for stage in stages:
            shapes = [tuple(values.shape) for values in (*stage.scores.values(), *stage.reach.values())]
            if rows.ndim != 1 or any(shape != rows.shape for shape in (*shapes, stage.wrong.shape)):
                raise ShapeError(f"got scores {shapes} and answers {tuple(stage.wrong.shape)}, expected (N,) each")
        tuning, proof = split_rows(len(rows), seed)
        candidates = []
        for name, values in stages[-1].scores.items():
            score = SCORES[name]
            uncertainty = -score.certainty(values.double())
            limits = _spread(_limits(score, uncertainty[tuning], resolution))
            candidates.append(
                Candidates(
                    name,
                    tuple(score.certainty(-limits).tolist()),
                    _count(stages, name, tuning, limits),
                    _count(stages, name, proof, limits),
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
        target = self.target_risk
        require(0 < target < 1, f"target_risk = {target}", "a number between 0 and 1")
        proved = (self.threshold, self.coverage, self.error, self.upper_bound)
        require(
            any(value is None for value in proved) == all(value is None for value in proved),
            f"a level for {target} that is proved in part",
            "all of threshold, coverage, error and upper_bound, or none",
        )
        for name in ("expected_coverage", "coverage", "error", "upper_bound"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{name} = {value} for target_risk {target}", "0 to 1")
        require(
            self.upper_bound is None or self.upper_bound <= target + TOLERANCE,
            f"upper_bound = {self.upper_bound} for target_risk {target}",
            "at most the target",
        )
        if self.threshold is not None:
            self.policy()

    def policy(self, source: Literal["request", "adapter"] = "adapter") -> Policy:
        """The threshold as a policy.

        Raises:
            ConfigError: if nothing was proved.
        """
        require(self.threshold is not None, f"target_risk {self.target_risk}", "one that was proved")
        return Policy(**{SCORES[self.score].threshold: self.threshold}, source=source)

    def answers(self, values: Tensor) -> Tensor:
        """Which questions are answered, (N,) bool, given their values of the level's score; none if none was proved."""
        if self.threshold is None:
            return torch.zeros_like(values, dtype=torch.bool)
        limit = torch.tensor(self.threshold, dtype=torch.float64)
        certainty = SCORES[self.score].certainty
        return certainty(values.double()) >= certainty(limit) - TOLERANCE


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


def _limits(score: Score, uncertainty: Tensor, resolution: Resolution | None) -> Tensor:
    """Return the distinct values that rows have, tightest first, on the grid; the loosest one allows all of them."""
    limits = uncertainty
    if resolution is not None:
        certain = -1.0 if score.high_is_certain else 0.0
        loosest = max(float(uncertainty.max()), certain + resolution.least)
        limits = (certain + resolution.loosen(uncertainty - certain)).clamp_max(loosest)
    distinct: Tensor = limits.unique()
    return distinct


def _spread(values: Tensor) -> Tensor:
    """At most MAX_CANDIDATES of the values, evenly spaced, the last one among them."""
    if len(values) <= MAX_CANDIDATES:
        return values
    return values[torch.linspace(0, len(values) - 1, MAX_CANDIDATES).round().long()]


def _count(stages: Sequence[Stage], name: ScoreName, rows: Tensor, limits: Tensor) -> tuple[Counts, ...]:
    """Answered and wrong of some rows under each limit; exactly at the limit is answered, as in `abstention.decide`."""
    counts: list[Counts] = []
    for some in limits[:, None].split(max(1, CHUNK_ELEMENTS // len(rows))):
        waiting = torch.ones(len(some), len(rows), dtype=torch.bool)
        answered = torch.zeros(len(some), dtype=torch.long)
        mistaken = answered.clone()
        for stage in stages:
            uncertainty = -SCORES[name].certainty(stage.scores[name].double())[rows]
            decided = waiting & ((uncertainty - some).abs() > stage.reach[name][rows]) if stage.reach else waiting
            out = decided & (uncertainty <= some + TOLERANCE)
            answered += out.sum(1)
            mistaken += (out & stage.wrong[rows]).sum(1)
            waiting = waiting & ~decided
        counts += map(Counts, answered.tolist(), mistaken.tolist())
    return tuple(counts)
