"""Selective prediction: thresholds that are proved to keep the selective error P(wrong | answered) below a target.

Rows that were not used to make the adapter are divided at random by a seed. The tuning part, a quarter, chooses a score
and the order in which thresholds are tested: first the threshold that is most likely to be proved, then ever looser
ones. The proof part tests, in that order, the hypothesis that the selective error exceeds the target, each time exactly
and at level delta, and stops at the first threshold for which the hypothesis cannot be rejected. The result is the last
threshold for which it was rejected.

The order is fixed before a score or a label of the proof part is seen, so this is fixed-sequence testing: the
probability that the resulting threshold's selective error exceeds the target is at most delta, exactly and for any
number of rows. The guarantee holds for one target, one delta and one seed that were fixed beforehand, and for questions
from the same distribution: the rows have to be independent draws of the texts to be asked about, each of which counts
once. If some texts are asked about again and again, nothing is proved of the share of wrong answers among all answers.

A selective error over all answers says little about a rare choice: if 2 % of the questions are harmful, a model that
calls nothing harmful is wrong in 2 % of its answers. A second limit, on the share of each choice's questions that get
another answer, is tested together with the first. A threshold is proved only if every hypothesis, that of the selective
error and that of each choice, is rejected at level delta. No correction is needed for their number: where one of the
limits is exceeded, its own test alone passes with a probability of at most delta (an intersection-union test).

References:
    Geifman and El-Yaniv, 2017. arXiv:1705.08500
    Angelopoulos et al., 2021, "Learn then Test". arXiv:2110.01052
    Berger, 1982, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24 (4).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict
from torch import Tensor

from blora.config.checks import require
from blora.decision.abstention import Policy
from blora.decision.binomial import binomial_cdf, clopper_pearson, trials_without_event
from blora.decision.resolution import Resolution
from blora.errors import ShapeError
from blora.scores import SCORES, TOLERANCE, Score, ScoreName

__all__ = ["Evidence", "Level", "ScoreName", "Stage", "certify", "rows_for_proof", "rows_needed", "split_rows"]

MAX_CANDIDATES = 200
# Limit for rows times thresholds in one step of the counting.
CHUNK_ELEMENTS = 2**22
# Weight of the overall tuning error, in rows, in the expected error under one threshold.
PRIOR_ROWS = 2


def rows_for_proof(n_proof: int) -> int:
    """Return the smallest number of rows whose proof part has `n_proof` rows."""
    return max(4, n_proof + (n_proof - 1) // 3)


def rows_needed(target_risk: float, delta: float) -> int:
    """Return the smallest number of rows that can prove a target, if no answer is wrong."""
    return rows_for_proof(trials_without_event(target_risk, delta))


def split_rows(n_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the row indices of the tuning part, a quarter, and of the proof part.

    Rows are sorted by the SHA-256 of "seed,row" in decimals. The order depends on every bit of the seed, and on neither
    library versions nor the machine, so that anyone can reproduce the division.

    Raises:
        ConfigError: if there are fewer than four rows.
    """
    require(n_rows >= 4, f"{n_rows} rows", "at least 4: bring more")
    order = sorted(range(n_rows), key=lambda row: hashlib.sha256(f"{seed},{row}".encode()).digest())
    return torch.tensor(order[: n_rows // 4]), torch.tensor(order[n_rows // 4 :])


class Counts(NamedTuple):
    """Numbers of rows in one part under one threshold.

    Attributes:
        answered: answered rows.
        wrong: wrong answers.
        missed: wrong answers to the questions of each choice; empty if these are not counted.
    """

    answered: int
    wrong: int
    missed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """Scores and errors of N questions after some of the draws, or after all of them.

    Attributes:
        scores: (N,) values of each candidate score; among equally good scores the first is chosen.
        wrong: (N,) whether the most probable choice of each question is wrong.
        reach: (N,) for each score: a question whose score is within this distance of the threshold goes on to the next
            stage. Empty in the last stage, which decides on all remaining questions.
    """

    scores: Mapping[ScoreName, Tensor]
    wrong: Tensor
    reach: Mapping[ScoreName, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidate thresholds of one score, tightest first, in the score's own unit, with the counts of both parts."""

    score: ScoreName
    thresholds: tuple[float, ...]
    tuning: tuple[Counts, ...]
    proof: tuple[Counts, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Sizes of the two parts, and the candidate thresholds of each score with their counts.

    Attributes:
        n_tuning: rows of the tuning part.
        n_proof: rows of the proof part.
        candidates: the candidate thresholds of each score.
        of_choices: rows of the tuning and of the proof part that can be answered, by their right choices; empty if the
            questions of each choice are not counted.
    """

    n_tuning: int
    n_proof: int
    candidates: tuple[Candidates, ...]
    of_choices: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @classmethod
    def gather(
        cls,
        stages: Sequence[Stage],
        *,
        seed: int,
        resolution: Resolution | None = None,
        passing: tuple[Tensor, Tensor] | None = None,
        right: Tensor | None = None,
    ) -> "Evidence":
        """Return the evidence from divided and counted rows.

        Args:
            stages: stages of the same rows, by rising number of draws; a single stage without early stopping.
            seed: seed of the division into tuning and proof part.
            resolution: grid for the thresholds; None uses the tuning part's values as thresholds.
            passing: the indices of the tuning and of the proof part's rows that pass a gate, the only ones that are
                answered; None for all of them.
            right: (N, C) whether a choice is the right one, to count the questions of each choice; None not to.

        Raises:
            ShapeError: if the shapes differ.
            ConfigError: if there are too few rows to divide.
        """
        rows = stages[-1].wrong
        right = (rows.new_zeros(len(rows), 0) if right is None else right).double()
        for stage in stages:
            shapes = [tuple(values.shape) for values in (*stage.scores.values(), *stage.reach.values())]
            if rows.ndim != 1 or any(shape != rows.shape for shape in (*shapes, stage.wrong.shape)):
                raise ShapeError(f"got scores {shapes} and answers {tuple(stage.wrong.shape)}, expected (N,) each")
        tuning, proof = split = split_rows(len(rows), seed)
        n_tuning, n_proof = map(len, split)
        if passing is not None:
            tuning, proof = passing
        candidates = []
        for name, values in stages[-1].scores.items():
            score = SCORES[name]
            uncertainty = -score.certainty(values.double())
            thresholds = score.certainty(-_spread(_grid(score, uncertainty[tuning], resolution)))
            counts = (_count(stages, score, rows, right[rows], thresholds) for rows in (tuning, proof))
            candidates.append(Candidates(name, tuple(thresholds.tolist()), *counts))
        of_tuning, of_proof = (tuple(right[rows].sum(0).long().tolist()) for rows in (tuning, proof))
        return cls(n_tuning, n_proof, tuple(candidates), (of_tuning, of_proof))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One target, and the threshold that proves it, if there is one.

    Attributes:
        target_risk: largest allowed selective error.
        score: score of the threshold, chosen by the tuning part.
        expected_coverage: share of answered questions predicted from the tuning part; 0 if no proof was expected to
            succeed.
        threshold: threshold in the score's own unit. None if nothing was proved; then coverage, error and upper_bound
            are None too.
        coverage: share of the proof part that is answered.
        error: share of wrong answers among the answered rows of the proof part.
        upper_bound: Clopper-Pearson bound, at level delta, of the probability of a wrong answer; at most target_risk.
            The guarantee is for target_risk, not for this bound, because the proof tests several thresholds.
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
        """Return the threshold as a policy.

        Raises:
            ConfigError: if nothing was proved.
        """
        require(self.threshold is not None, f"target_risk {self.target_risk}", "one that was proved")
        return Policy(**{SCORES[self.score].threshold: self.threshold}, source=source)

    def answers(self, values: Tensor) -> Tensor:
        """Return a mask (N,) of the answered questions, from their values of the level's score.

        Without a proved threshold no question is answered.
        """
        if self.threshold is None:
            return torch.zeros_like(values, dtype=torch.bool)
        return SCORES[self.score].passes(values.double(), self.threshold)


class _Limits(NamedTuple):
    """The largest allowed selective error, and for each choice the largest share of its questions that are missed."""

    target_risk: float
    max_missed: float

    def p_value(self, answered: int, wrong: int, missed: Iterable[tuple[int, int]]) -> float:
        """Return the p-value of the hypothesis that some limit is exceeded: the largest of the limits' own p-values.

        Args:
            answered: number of answered rows.
            wrong: number of wrong answers.
            missed: for each choice, the number of its rows that got another answer, and the number of its rows.
        """
        alone = [binomial_cdf(wrong, answered, self.target_risk)]  # 1 without an answer
        if self.max_missed < 1:
            alone += [binomial_cdf(n_missed, n_rows, self.max_missed) for n_missed, n_rows in missed]
        return max(alone)


def certify(evidence: Evidence, *, target_risk: float, delta: float, max_missed: float = 1.0) -> Level:
    """Return the level of a target, with the loosest threshold that is proved to keep the selective error within it.

    Args:
        evidence: counts of the divided rows.
        target_risk: largest allowed selective error.
        delta: largest probability of proving a threshold that exceeds a limit.
        max_missed: for each choice, the largest allowed share of wrong answers to its questions; 1 for any.
    """
    limits = _Limits(target_risk, max_missed)
    plans = [(_plan(candidates, evidence, limits, delta), candidates) for candidates in evidence.candidates]
    plan, candidates = max(plans, key=lambda pair: (pair[0].coverage, -pair[0].p_value))
    level = Level(target_risk=target_risk, score=candidates.score, expected_coverage=plan.coverage)

    def holds(index: int) -> bool:
        counts = candidates.proof[index]
        missed = zip(counts.missed, evidence.of_choices[1], strict=True)
        return limits.p_value(counts.answered, counts.wrong, missed) <= delta

    proved = list(takewhile(holds, range(plan.start, len(candidates.thresholds))))
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
    """Test plan for one score: index of the first tested threshold, its expected p-value, and the expected coverage."""

    start: int
    p_value: float
    coverage: float


def _plan(candidates: Candidates, evidence: Evidence, limits: _Limits, delta: float) -> _Plan:
    """Return the test plan for a score from the tuning part's counts, scaled up to the size of the proof part.

    Error rates under tight thresholds rest on few rows, so they are shrunk towards the error rate of all rows. A choice
    without a row in the tuning part plays no part in the plan.
    """
    scale = evidence.n_proof / evidence.n_tuning
    everything = candidates.tuning[-1]
    # Early stopping may withhold every row at an early look, under each of the thresholds; then nothing is expected.
    prior = PRIOR_ROWS * everything.wrong / max(1, everything.answered)
    expected = []
    for counts in candidates.tuning:
        answered = round(counts.answered * scale)
        error = (counts.wrong + prior) / (counts.answered + PRIOR_ROWS)
        pairs = zip(counts.missed, evidence.of_choices[0], strict=True)
        missed = [(round(n_missed * scale), round(n_rows * scale)) for n_missed, n_rows in pairs if n_rows]
        expected.append(limits.p_value(answered, round(error * answered), missed))
    start = min(range(len(expected)), key=expected.__getitem__)
    reached = len(list(takewhile(lambda p_value: p_value <= delta, expected[start:])))
    coverage = candidates.tuning[start + reached - 1].answered / evidence.n_tuning if reached else 0.0
    return _Plan(start, expected[start], coverage)


def _grid(score: Score, uncertainty: Tensor, resolution: Resolution | None) -> Tensor:
    """Return the rows' distinct uncertainties on the grid, tightest first; the last is the loosest row's own."""
    limits = uncertainty
    if resolution is not None:
        certain = -1.0 if score.high_is_certain else 0.0
        loosest = max(float(uncertainty.max()), certain + resolution.least)
        limits = (certain + resolution.loosen(uncertainty - certain)).clamp_max(loosest)
    distinct: Tensor = limits.unique()
    return distinct


def _spread(values: Tensor) -> Tensor:
    """Return at most MAX_CANDIDATES of the values, evenly spaced, with the last one included."""
    if len(values) <= MAX_CANDIDATES:
        return values
    return values[torch.linspace(0, len(values) - 1, MAX_CANDIDATES).round().long()]


def _count(
    stages: Sequence[Stage], score: Score, rows: Tensor, right: Tensor, thresholds: Tensor
) -> tuple[Counts, ...]:
    """Return the counts of the given rows under each threshold, by the right choices (N, C) of these rows too."""
    counts: list[Counts] = []
    for some in thresholds[:, None].split(max(1, CHUNK_ELEMENTS // len(rows))):
        waiting = torch.ones(len(some), len(rows), dtype=torch.bool)
        answered = torch.zeros(len(some), dtype=torch.long)
        mistaken = answered.clone()
        missed = right.new_zeros(len(some), right.shape[1])
        for stage in stages:
            values = stage.scores[score.name].double()[rows]
            decided = waiting & ((values - some).abs() > stage.reach[score.name][rows]) if stage.reach else waiting
            out = decided & score.passes(values, some)
            answered += out.sum(1)
            wrong = out & stage.wrong[rows]
            mistaken += wrong.sum(1)
            missed += wrong.double() @ right
            waiting = waiting & ~decided
        counts += map(Counts, answered.tolist(), mistaken.tolist(), map(tuple, missed.long().tolist()))
    return tuple(counts)
