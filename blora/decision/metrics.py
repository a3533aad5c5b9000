"""Metrics of predictive probabilities: accuracy, NLL, Brier score, ECE, area under the risk-coverage curve.

Every metric takes the predictive mean (B, C), already averaged over draws, and labels (B,). Choices that a
question does not have must have probability zero. Numbers that are not finite are refused.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from blora.errors import NumericalError, ShapeError

__all__ = [
    "SMALLEST",
    "Metrics",
    "accuracy",
    "aurc",
    "bin_of",
    "brier",
    "check_shapes",
    "ece",
    "losses",
    "metrics",
    "nll",
    "refuse_rows",
    "tied_mean",
]

N_BINS = 15
# Lower limit for probabilities in a logarithm, against log 0 for a confident wrong draw: the smallest float32.
SMALLEST = torch.finfo(torch.float32).tiny


def check_shapes(probs: Tensor, labels: Tensor) -> None:
    """Raise a ShapeError unless there are probabilities (B, C) and labels (B,) of at least one row."""
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or len(labels) == 0:
        raise ShapeError(
            f"got probabilities {tuple(probs.shape)} and labels {tuple(labels.shape)}, expected (B, C) and (B,), B >= 1"
        )


def _check(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    check_shapes(probs, labels)
    refuse_rows(~probs.isfinite().all(-1), "probabilities that are not finite", "finite ones")
    return probs.double(), labels.long()


def refuse_rows(rows: Tensor, got: str, expected: str) -> None:
    """Raise a NumericalError if any of the rows (B,) is marked."""
    if bool(rows.any()):
        marked = rows.nonzero().flatten().tolist()
        raise NumericalError(
            f"got {got} in {len(marked)} of {len(rows)} rows, row {marked[0]} the first, expected {expected}; "
            "check those rows, and the model and its dtype"
        )


def _confidence(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    confidence, top = probs.max(-1)
    return confidence, (top == labels).double()


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """Return the share of questions whose most probable choice is right."""
    return _confidence(*_check(probs, labels))[1].mean().item()


def nll(probs: Tensor, labels: Tensor) -> float:
    """Return the mean negative log-probability of the label, in nats."""
    return float(losses(probs, labels).mean())


def losses(probs: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-probability of each question's label (B,), float64, in nats."""
    probs, labels = _check(probs, labels)
    return -probs.gather(1, labels[:, None])[:, 0].clamp_min(SMALLEST).log()


def brier(probs: Tensor, labels: Tensor) -> float:
    """Return the mean squared distance between the probabilities and the one-hot label, in [0, 2] (Brier, 1950)."""
    probs, labels = _check(probs, labels)
    one_hot = torch.nn.functional.one_hot(labels, probs.shape[1])
    return (probs - one_hot).square().sum(-1).mean().item()


def ece(
    probs: Tensor, labels: Tensor, n_bins: int = N_BINS, binning: Literal["equal_width", "adaptive"] = "equal_width"
) -> float:
    """Return the expected calibration error of the confidence (Naeini et al., 2015; Guo et al., 2017).

    Args:
        probs: (B, C).
        labels: (B,).
        n_bins: number of bins.
        binning: equal_width for bins (k/n, (k+1)/n], adaptive for bins of equal counts.

    Returns:
        Mean |accuracy - confidence| over bins, weighted by their counts, in [0, 1].
    """
    confidence, correct = _confidence(*_check(probs, labels))
    if binning == "adaptive":
        correct = tied_mean(confidence, correct)  # so that the order of rows does not matter
        order = confidence.argsort(stable=True)
        groups = torch.empty_like(order)
        groups[order] = torch.arange(len(order)) * n_bins // len(order)
    else:
        groups = bin_of(confidence, n_bins)
    gap = torch.zeros(n_bins, dtype=torch.float64).index_add(0, groups, correct - confidence)
    return float(gap.abs().sum() / len(correct))


def bin_of(confidence: Tensor, n_bins: int) -> Tensor:
    """Return the index k of the bin (k/n, (k+1)/n] that holds each confidence, (B,)."""
    return ((confidence * n_bins).ceil().long() - 1).clamp(0, n_bins - 1)


def aurc(probs: Tensor, labels: Tensor) -> float:
    """Return the area under the risk-coverage curve of the confidence (Geifman et al., 2019; arXiv:1805.08206).

    The area is the mean, over every coverage k / B, of the error among the k most confident answers. Answers of equal
    confidence count with their mean error, so that the order of rows does not matter.
    """
    confidence, correct = _confidence(*_check(probs, labels))
    error = 1 - tied_mean(confidence, correct)
    ranked = error[confidence.argsort(descending=True)]
    return float((ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)).mean())


def tied_mean(confidence: Tensor, values: Tensor) -> Tensor:
    """Return each value's mean over the rows of equal confidence, (B,)."""
    _, group, counts = torch.unique(confidence, return_inverse=True, return_counts=True)
    means: Tensor = values.new_zeros(len(counts)).index_add(0, group, values) / counts
    return means[group]


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics of this module for one set of predictions."""

    accuracy: float
    nll: float
    ece: float
    ece_adaptive: float
    brier: float
    aurc: float

    def to_dict(self) -> dict[str, float]:
        """Return the metrics by name."""
        return asdict(self)


def metrics(probs: Tensor, labels: Tensor) -> Metrics:
    """Return every metric of the predictive mean (B, C) against labels (B,).

    Raises:
        ShapeError: if the shapes do not fit.
        NumericalError: if a probability is not finite.
    """
    return Metrics(
        accuracy=accuracy(probs, labels),
        nll=nll(probs, labels),
        ece=ece(probs, labels),
        ece_adaptive=ece(probs, labels, binning="adaptive"),
        brier=brier(probs, labels),
        aurc=aurc(probs, labels),
    )
