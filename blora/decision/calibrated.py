"""One calibration of an adapter: thresholds and prediction sets with a guarantee, and a picture of its probabilities.

A calibration holds for exactly what it was made with, its `Binding`, and says nothing about other draws, another dtype
or other contents.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict
from torch import Tensor

from blora.config import ScoringName
from blora.decision.calibration import N_BINS, temper
from blora.decision.conformal import conformal_quantile, nonconformity, proof_rows_needed
from blora.decision.curves import ReliabilityBin, reliability, risk_coverage
from blora.decision.histogram import Histogram, entropy_histogram
from blora.decision.selective import (
    Evidence,
    Level,
    ScoreName,
    best_target,
    certify,
    rows_for_proof,
    rows_needed,
    split_rows,
    trust,
)
from blora.decision.uncertainty import mutual_information, predictive_entropy, predictive_mean
from blora.errors import ConfigError, NumericalError, ShapeError

__all__ = [
    "Binding",
    "Calibration",
    "CalibrationRows",
    "ConformalQuantile",
    "Goal",
    "calibrate",
    "scores_of",
]

STANDARD_TARGETS = (0.01, 0.02, 0.05, 0.1, 0.2)
STANDARD_COVERAGES = (0.8, 0.9, 0.95)
CURVE_POINTS = 100

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _require(condition: bool, got: str, expected: str) -> None:
    if not condition:
        raise ConfigError(f"got {got}, expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a calibration is to prove, fixed before any row is seen.

    Attributes:
        target_risk: the selective error of the default policy.
        delta: the probability with which a proved target may be missed all the same.
        coverage: the probability with which the default prediction sets hold the right choice.
        seed: of the division of the rows into tuning and proof part.
    """

    target_risk: float = 0.05
    delta: float = 0.05
    coverage: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 < self.target_risk < 1, f"target_risk = {self.target_risk}", "a number between 0 and 1")
        _require(0 < self.delta <= 0.5, f"delta = {self.delta}", "a number above 0, at most 0.5")
        _require(0 < self.coverage < 1, f"coverage = {self.coverage}", "a number between 0 and 1")
        _require(0 <= self.seed < 2**63, f"seed = {self.seed}", "0 to 2^63 - 1")

    def check_rows(self, n_rows: int) -> None:
        """Makes sure that the goal can be reached with so many rows at all.

        Raises:
            ConfigError: naming the number of rows needed.
        """
        for name, needed in (
            (f"target_risk {self.target_risk} at delta {self.delta}", rows_needed(self.target_risk, self.delta)),
            (f"coverage {self.coverage}", rows_for_proof(proof_rows_needed(self.coverage))),
        ):
            if n_rows < needed:
                raise ConfigError(
                    f"got {n_rows} rows for {name}, expected at least {needed}: bring more or ask for less"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a calibration holds for.

    Attributes:
        adapter_digest: of the adapter's contents.
        dtype: of the base model, as in bfloat16.
        n_samples: draws behind each answer.
        seed: of the sample bank that they are.
        scoring: how choices are scored.
        temperature: of the probabilities.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    adapter_digest: str
    dtype: str
    n_samples: int
    seed: int
    scoring: ScoringName
    temperature: float

    def __post_init__(self) -> None:
        _require(bool(_DIGEST.fullmatch(self.adapter_digest)), f"digest {self.adapter_digest!r}", "sha256:<64 hex>")
        _require(bool(self.dtype), "no dtype", "its name, as in bfloat16")
        _require(self.n_samples >= 1, f"n_samples = {self.n_samples}", "at least 1")
        _require(self.seed >= 0, f"seed = {self.seed}", "at least 0")
        _require(self.temperature > 0, f"temperature = {self.temperature}", "a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRows:
    """The rows that a calibration was made with.

    Attributes:
        source: file name or hub id.
        digest: of the rows as read.
        split: which split it is.
        n_rows: how many rows were used.
        n_tuning: of these, how many chose the scores and the order of the thresholds.
        n_proof: how many proved.
        seed: of the division between the two.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    source: str
    digest: str
    split: str
    n_rows: int
    n_tuning: int
    n_proof: int
    seed: int

    def __post_init__(self) -> None:
        _require(
            self.n_tuning >= 1 and self.n_proof >= 1 and self.n_tuning + self.n_proof == self.n_rows,
            f"{self.n_tuning} tuning and {self.n_proof} proof rows of {self.n_rows}",
            "positive numbers that add up",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalQuantile:
    """Choices whose probability is at least 1 - quantile form sets of this coverage; None with too few rows."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    coverage: float
    quantile: float | None

    def __post_init__(self) -> None:
        _require(0 < self.coverage < 1, f"coverage = {self.coverage}", "a number between 0 and 1")
        _require(self.quantile is None or 0 <= self.quantile <= 1, f"quantile = {self.quantile}", "0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One entry of `calibration.json`.

    Levels and quantiles were proved on the proof part; each guarantee is one of its own, at its own delta. The bins,
    the curve and the histogram describe all rows.

    Attributes:
        binding: what it holds for.
        rows: what it was made with.
        delta: the probability with which a proved level may be missed all the same.
        target_risk: of the level that is the default policy.
        coverage: of the prediction sets in answers.
        levels: by rising target.
        quantiles: by rising coverage.
        reliability: 15 bins of equal width of the confidence.
        curve: (coverage, selective risk) by the default level's score, at most 100 points by rising coverage.
        entropy: of the predictive entropy, in nats: what later questions can be compared with.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    binding: Binding
    rows: CalibrationRows
    delta: float
    target_risk: float
    coverage: float
    levels: tuple[Level, ...]
    quantiles: tuple[ConformalQuantile, ...]
    reliability: tuple[ReliabilityBin, ...]
    curve: tuple[tuple[float, float], ...]
    entropy: Histogram

    def __post_init__(self) -> None:
        Goal(target_risk=self.target_risk, delta=self.delta, coverage=self.coverage)
        targets = [level.target_risk for level in self.levels]
        coverages = [quantile.coverage for quantile in self.quantiles]
        for name, values in (("target_risk", targets), ("coverage", coverages)):
            _require(values == sorted(set(values)), f"{name} of {values}", "distinct ones in rising order")
        _require(
            any(level.target_risk == self.target_risk and level.threshold is not None for level in self.levels),
            f"default target_risk = {self.target_risk}",
            "that of a proved level",
        )
        _require(
            any(q.coverage == self.coverage and q.quantile is not None for q in self.quantiles),
            f"default coverage = {self.coverage}",
            "that of a quantile",
        )
        _require(len(self.reliability) == N_BINS, f"{len(self.reliability)} reliability bins", str(N_BINS))
        _require(1 <= len(self.curve) <= CURVE_POINTS, f"{len(self.curve)} curve points", f"1 to {CURVE_POINTS}")
        shares = [share for point in self.curve for share in point]
        shares += [share for row in self.reliability for share in (row.confidence, row.accuracy) if share is not None]
        _require(
            all(0 <= share <= 1 for share in shares) and all(row.count >= 0 for row in self.reliability),
            "a reliability bin or curve point out of range",
            "shares from 0 to 1, counts of at least 0",
        )

    def proved(self) -> tuple[Level, ...]:
        """The levels that have a threshold."""
        return tuple(level for level in self.levels if level.threshold is not None)

    def level(self, target_risk: float) -> Level | None:
        """The proved level of a target, if there is one."""
        return next((level for level in self.proved() if abs(level.target_risk - target_risk) < 1e-9), None)

    @property
    def default_level(self) -> Level:
        """The level that is the adapter's own policy."""
        return next(level for level in self.levels if level.target_risk == self.target_risk)

    @property
    def quantile(self) -> float:
        """Of the prediction sets in answers."""
        return next(q.quantile for q in self.quantiles if q.coverage == self.coverage and q.quantile is not None)


def scores_of(probs: Tensor) -> dict[ScoreName, Tensor]:
    """The scores that a threshold may be on, (N,) each, from probs (S, N, C); one draw has no mutual information."""
    scores: dict[ScoreName, Tensor] = {
        "confidence": predictive_mean(probs).max(-1).values.clamp_max(1),
        "predictive_entropy": predictive_entropy(probs).clamp_min(0),
    }
    if len(probs) > 1:
        scores["mutual_information"] = mutual_information(probs).clamp_min(0)
    return scores


def calibrate(
    log_probs: Tensor, labels: Tensor, *, binding: Binding, goal: Goal, source: str, digest: str, split: str
) -> Calibration:
    """What labelled rows prove about an adapter.

    Args:
        log_probs: (S, N, C) under every draw of the adapter's bank, -inf for choices that a row does not have.
        labels: (N,) indices of the right choices.
        binding: what was scored; its temperature is applied.
        goal: what is to be proved. Its seed has to be fixed beforehand too.
        source: where the rows came from.
        digest: of the rows as read.
        split: which split they are.

    Raises:
        ShapeError: if the shapes do not fit.
        NumericalError: if a probability is not finite.
        ConfigError: if there are too few rows, or the target is out of reach; names what is within it.
    """
    if log_probs.ndim != 3 or labels.shape != log_probs.shape[1:2]:
        raise ShapeError(
            f"got log-probabilities {tuple(log_probs.shape)} and labels {tuple(labels.shape)}, "
            "expected (S, N, C) and (N,)"
        )
    goal.check_rows(len(labels))
    probs = temper(log_probs, binding.temperature)
    if not bool(probs.isfinite().all()):
        raise NumericalError("got probabilities that are not finite, expected finite ones: score in float32")
    mean, scores = predictive_mean(probs), scores_of(probs)
    wrong = mean.argmax(-1) != labels
    evidence = Evidence.gather(scores, wrong, seed=goal.seed)
    targets = sorted({*STANDARD_TARGETS, goal.target_risk})
    levels = tuple(certify(evidence, target_risk=target, delta=goal.delta) for target in targets)
    default = levels[targets.index(goal.target_risk)]
    if default.threshold is None:
        raise ConfigError(_out_of_reach(evidence, goal))
    _, proof = split_rows(len(labels), goal.seed)
    return Calibration(
        binding=binding,
        rows=CalibrationRows(
            source=source,
            digest=digest,
            split=split,
            n_rows=len(labels),
            n_tuning=evidence.n_tuning,
            n_proof=evidence.n_proof,
            seed=goal.seed,
        ),
        delta=goal.delta,
        target_risk=goal.target_risk,
        coverage=goal.coverage,
        levels=levels,
        quantiles=_quantiles(nonconformity(mean[proof], labels[proof]), goal.coverage),
        reliability=tuple(reliability(mean, labels)),
        curve=tuple((kept, risk) for kept, risk in risk_coverage(trust(default.score, scores[default.score]), ~wrong)),
        entropy=entropy_histogram(scores["predictive_entropy"], mean.shape[-1]),
    )


def _quantiles(scores: Tensor, default: float) -> tuple[ConformalQuantile, ...]:
    """Those of the standard coverages for which there are rows enough, and that of the default one."""
    return tuple(
        ConformalQuantile(
            coverage=coverage,
            quantile=min(1.0, max(0.0, conformal_quantile(scores, coverage)))
            if len(scores) >= proof_rows_needed(coverage)
            else None,
        )
        for coverage in sorted({*STANDARD_COVERAGES, default})
    )


def _out_of_reach(evidence: Evidence, goal: Goal) -> str:
    best = best_target(evidence, above=goal.target_risk, delta=goal.delta)
    within = f"at least {best}, the smallest that they prove" if best else "better answers: they prove no target at all"
    return (
        f"got target_risk {goal.target_risk}, which these {evidence.n_tuning + evidence.n_proof} rows do not prove at "
        f"delta {goal.delta}, expected {within}; bring more rows, or train a better adapter"
    )
