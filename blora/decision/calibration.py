"""How good probabilities are: NLL, Brier, ECE, accuracy, the area under the risk-coverage curve; and a temperature.

Every metric takes the predictive mean (B, C), already averaged over draws, and labels (B,). Choices that a
question does not have carry probability zero. Numbers that are not finite are refused.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from blora.errors import NumericalError, ShapeError

__all__ = ["Metrics", "accuracy", "aurc", "brier", "ece", "fit_temperature", "metrics", "nll", "temper"]

N_BINS = 15
LOG_TEMPERATURE = math.log(100)
# The smallest probability that enters a logarithm: that of float32, for a draw that is sure and wrong.
SMALLEST = torch.finfo(torch.float32).tiny


def _check(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or len(labels) == 0:
        raise ShapeError(
            f"got probabilities {tuple(probs.shape)} and labels {tuple(labels.shape)}, expected (B, C) and (B,), B >= 1"
        )
    _refuse(~probs.isfinite().all(-1), "probabilities that are not finite", "finite ones")
    return probs.double(), labels.long()


def _check_log_probs(log_probs: Tensor, labels: Tensor) -> None:
    if log_probs.ndim != 3 or len(log_probs) == 0 or labels.shape != log_probs.shape[1:2] or len(labels) == 0:
        raise ShapeError(
            f"got log-probabilities {tuple(log_probs.shape)} and labels {tuple(labels.shape)}, "
            "expected (S, B, C) and (B,), S and B >= 1"
        )
    unusable = (log_probs.isnan() | log_probs.isposinf()).any(-1).any(0)
    _refuse(unusable, "log-probabilities of NaN or +inf", "finite ones, and -inf for absent choices")
    absent = log_probs.isneginf()  # (S, B, C)
    _refuse(absent.all(-1).any(0), "no choice with a probability", "at least one finite log-probability a draw")
    of_label = absent.all(0).gather(1, labels.long()[:, None])[:, 0]
    _refuse(of_label, "a label on an absent choice", "the label of a choice that the question has")


def _refuse(rows: Tensor, got: str, expected: str) -> None:
    """Raises if any of the rows (B,) is marked."""
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
    """Share of questions whose most probable choice is right."""
    return _confidence(*_check(probs, labels))[1].mean().item()


def nll(probs: Tensor, labels: Tensor) -> float:
    """Mean negative log-probability of the label, in nats."""
    probs, labels = _check(probs, labels)
    picked = probs.gather(1, labels[:, None])
    return float(-picked.clamp_min(SMALLEST).log().mean())


def brier(probs: Tensor, labels: Tensor) -> float:
    """Mean squared distance between the probabilities and the one-hot label, in [0, 2] (Brier, 1950)."""
    probs, labels = _check(probs, labels)
    one_hot = torch.nn.functional.one_hot(labels, probs.shape[1])
    return (probs - one_hot).square().sum(-1).mean().item()


def ece(
    probs: Tensor, labels: Tensor, n_bins: int = N_BINS, binning: Literal["equal_width", "adaptive"] = "equal_width"
) -> float:
    """Expected calibration error of the confidence (Naeini et al., 2015; Guo et al., 2017).

    Args:
        probs: (B, C).
        labels: (B,).
        n_bins: number of bins.
        binning: equal_width bins (k/n, (k+1)/n], or adaptive ones of equal counts.

    Returns:
        Mean |accuracy - confidence| over bins, weighted by their counts, in [0, 1].
    """
    confidence, correct = _confidence(*_check(probs, labels))
    if binning == "adaptive":
        correct = _tied_mean(confidence, correct)  # so that the order of rows does not matter
        order = confidence.argsort(stable=True)
        groups = torch.empty_like(order)
        groups[order] = torch.arange(len(order)) * n_bins // len(order)
    else:
        groups = ((confidence * n_bins).ceil().long() - 1).clamp(0, n_bins - 1)
    gap = torch.zeros(n_bins, dtype=torch.float64).index_add(0, groups, correct - confidence)
    return float(gap.abs().sum() / len(correct))


def aurc(probs: Tensor, labels: Tensor) -> float:
    """Area under the risk-coverage curve with the confidence as score (Geifman et al., 2019; arXiv:1805.08206).

    The mean, over every coverage k / B, of the error among the k most confident answers. Answers of equal
    confidence count with their mean error, so that the order of rows does not matter.
    """
    confidence, correct = _confidence(*_check(probs, labels))
    error = 1 - _tied_mean(confidence, correct)
    ranked = error[confidence.argsort(descending=True)]
    return float((ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)).mean())


def temper(log_probs: Tensor, temperature: float) -> Tensor:
    """Probabilities of every draw at a temperature: softmax(log p / T) over the choices.

    Each draw is tempered before draws are averaged, so that the predictive entropy still splits into an expected
    entropy and a mutual information that is not negative.

    Args:
        log_probs: (..., C) normalised log-probabilities, -inf for choices that a question does not have.
        temperature: above 1 flattens, below 1 sharpens, 1 changes nothing.

    Returns:
        (..., C) float64.
    """
    probs: Tensor = (log_probs.double() / temperature).softmax(-1)
    return probs


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The temperature at which the predictive mean has the lowest NLL (Guo et al., 2017, for a posterior).

    A standard normal prior on log T, which weighs as little as one row, keeps a handful of rows that all happen to be
    right from making every answer certain. A golden-section search over log T within bounds far beyond any sensible
    temperature, so it cannot diverge.

    Args:
        log_probs: (S, B, C) normalised log-probabilities of every draw, -inf for choices that a question does not have.
        labels: (B,).

    Raises:
        ShapeError: if the shapes do not fit.
        NumericalError: if a log-probability is NaN or +inf, a row has no choice, or a label is on an absent one.
    """
    _check_log_probs(log_probs, labels)

    def loss(log_temperature: float) -> float:
        prior = log_temperature**2 / (2 * len(labels))
        return nll(temper(log_probs, math.exp(log_temperature)).mean(0), labels) + prior

    return math.exp(_minimize(loss, -LOG_TEMPERATURE, LOG_TEMPERATURE))


def _minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one valley is lowest: a coarse grid finds the valley, a golden section its bottom."""
    grid = torch.linspace(low, high, 33).tolist()
    best = min(range(len(grid)), key=lambda i: function(grid[i]))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    shrink = (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        low, high = (low, right) if function(left) <= function(right) else (left, high)
    return (low + high) / 2


def _tied_mean(confidence: Tensor, values: Tensor) -> Tensor:
    """Each value replaced by the mean over the rows of equal confidence, (B,)."""
    _, group, counts = torch.unique(confidence, return_inverse=True, return_counts=True)
    means: Tensor = torch.zeros(len(counts), dtype=values.dtype).index_add(0, group, values) / counts
    return means[group]


@dataclass(frozen=True, slots=True)
class Metrics:
    """All of this module, for one set of predictions."""

    accuracy: float
    nll: float
    ece: float
    ece_adaptive: float
    brier: float
    aurc: float

    def to_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


def metrics(probs: Tensor, labels: Tensor) -> Metrics:
    """Every metric of the predictive mean (B, C) against labels (B,).

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
