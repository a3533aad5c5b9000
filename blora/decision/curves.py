"""Data for plots of calibration and selection: reliability bins, the risk-coverage curve, and the AUROC."""

from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from blora.config.checks import require
from blora.decision.metrics import N_BINS, bin_of, check_shapes, tied_mean
from blora.errors import ConfigError, NumericalError, ShapeError
from blora.scores import TOLERANCE

__all__ = ["ReliabilityBin", "auroc", "reliability", "risk_coverage"]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """A bin of a reliability diagram: the answers whose confidence lies in one interval.

    Attributes:
        count: number of answers.
        confidence: mean confidence, None without answers.
        accuracy: share of right answers, None without answers.
    """

    count: Annotated[int, Field(le=2**53)]
    confidence: float | None
    accuracy: float | None

    def __post_init__(self) -> None:
        shares = [share for share in (self.confidence, self.accuracy) if share is not None]
        require(
            self.count >= 0 and len(shares) == (2 if self.count else 0),
            f"a reliability bin of {self.count} answers with confidence {self.confidence}, accuracy {self.accuracy}",
            "a count of at least 0, with both numbers if there are answers and neither if there are none",
        )
        require(
            all(0 <= share <= 1 + TOLERANCE for share in shares),
            f"a reliability bin with confidence {self.confidence}, accuracy {self.accuracy}",
            "shares from 0 to 1",
        )

    def to_dict(self) -> dict[str, int | float | None]:
        """Return the fields by name, for a result file."""
        return asdict(self)


def reliability(probs: Tensor, labels: Tensor, n_bins: int = N_BINS) -> list[ReliabilityBin]:
    """Return the confidence bins (k/n, (k+1)/n] of `ece`, in rising order.

    The mean over answers of |accuracy - confidence| of their bin is the expected calibration error.

    Args:
        probs: (B, C) predictive mean.
        labels: (B,).
        n_bins: number of bins.

    Raises:
        ShapeError: if the shapes do not fit together.
        ConfigError: if n_bins is below 1.

    >>> reliability(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]), n_bins=2)[0]
    ReliabilityBin(count=0, confidence=None, accuracy=None)
    """
    check_shapes(probs, labels)
    if n_bins < 1:
        raise ConfigError(f"got n_bins = {n_bins}, expected at least 1")
    confidence, top = probs.double().max(-1)
    groups = bin_of(confidence, n_bins)

    def summed(values: Tensor) -> list[float]:
        total = torch.zeros(n_bins, dtype=torch.float64, device=values.device)
        return [float(value) for value in total.index_add(0, groups, values.double())]

    counts = summed(torch.ones_like(confidence))
    return [
        ReliabilityBin(int(n), sure / n, right / n) if n else ReliabilityBin(0, None, None)
        for n, sure, right in zip(counts, summed(confidence), summed(top == labels), strict=True)
    ]


def risk_coverage(score: Tensor, correct: Tensor, points: int = 100) -> list[list[float]]:
    """Return the risk-coverage curve: the error among the kept answers by the share kept, most certain first.

    Answers of equal score count with their mean error, so that the order of rows does not matter. With no more
    answers than points, the curve has every coverage k / B and the mean risk is the AURC; otherwise the coverages are
    evenly spaced.

    Args:
        score: (B,), higher is more certain.
        correct: (B,) bool.
        points: largest number of points.

    Returns:
        [coverage, selective risk] pairs of rising coverage; the last has coverage 1.

    Raises:
        ShapeError: if score and correct differ in length, or are empty.
        NumericalError: if a score is not finite.
        ConfigError: if points is below 1.

    References:
        Geifman et al., 2019. arXiv:1805.08206

    >>> risk_coverage(torch.tensor([0.9, 0.8]), torch.tensor([True, False]))
    [[0.5, 0.0], [1.0, 0.5]]
    """
    _check(score, correct)
    if points < 1:
        raise ConfigError(f"got points = {points}, expected at least 1")
    error = tied_mean(score, 1 - correct.double())[score.argsort(descending=True)].cumsum(0).tolist()
    B = len(error)
    kept = sorted({round(i * B / points) for i in range(1, points + 1)} - {0}) if points < B else range(1, B + 1)
    return [[k / B, error[k - 1] / k] for k in kept]


def auroc(score: Tensor, positive: Tensor) -> float | None:
    """Return the probability that a positive scores above a negative, ties counted half; 0.5 is chance.

    Args:
        score: (N,), higher for likely positives.
        positive: (N,) bool.

    Returns:
        The AUROC in [0, 1]; None if all are positive or all negative, for which it is undefined.

    Raises:
        ShapeError: if score and positive differ in length, or are empty.
        NumericalError: if a score is not finite.

    References:
        The rank statistic of Mann and Whitney, 1947.

    >>> auroc(torch.tensor([0.1, 0.4, 0.4]), torch.tensor([False, False, True]))
    0.75
    """
    _check(score, positive)
    positive = positive.bool()
    n_positive = int(positive.sum())
    n_negative = len(score) - n_positive
    if not n_positive or not n_negative:
        return None
    _, group, counts = torch.unique(score, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    rank = (last - (counts - 1) / 2)[group]  # 1-based; ties get their mean rank
    above = rank[positive].sum().item() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def _check(score: Tensor, flag: Tensor) -> None:
    if score.ndim != 1 or flag.shape != score.shape or len(score) == 0:
        raise ShapeError(
            f"got scores {tuple(score.shape)} and flags {tuple(flag.shape)}, expected (B,) and (B,), B >= 1"
        )
    if not bool(score.isfinite().all()):
        raise NumericalError("got scores that are not finite, expected finite ones, which can be ranked")
