"""Confidence and the decomposition of a posterior predictive into aleatoric and epistemic uncertainty, in nats."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blora.errors import NumericalError, ShapeError

__all__ = [
    "Prediction",
    "entropy",
    "expected_entropy",
    "mutual_information",
    "predictive_entropy",
    "predictive_mean",
    "summarize",
]


def _draws(probs: Tensor) -> Tensor:
    if probs.ndim != 3 or probs.shape[0] < 1:
        raise ShapeError(f"got probabilities of shape {tuple(probs.shape)}, expected (S, B, C) with S >= 1")
    return probs


def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy over the last dimension, in nats, with 0 log 0 = 0.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0])).item() == torch.tensor(2.0).log().item()
    True
    """
    return -torch.xlogy(probs, probs).sum(-1)


def predictive_mean(probs: Tensor) -> Tensor:
    """The posterior predictive: probabilities, never logits, averaged over draws.

    Args:
        probs: (S, B, C).

    Returns:
        (B, C).

    Raises:
        ShapeError: if probs is not 3-D.
    """
    return _draws(probs).mean(0)


def predictive_entropy(probs: Tensor) -> Tensor:
    """Total uncertainty H[E_w p(y | x, w)] in nats, (B,), from probs (S, B, C)."""
    return entropy(predictive_mean(probs))


def expected_entropy(probs: Tensor) -> Tensor:
    """Aleatoric uncertainty E_w H[p(y | x, w)] in nats, (B,), from probs (S, B, C)."""
    return entropy(_draws(probs)).mean(0)


def mutual_information(probs: Tensor) -> Tensor:
    """Epistemic uncertainty I(y; w | x) of a posterior predictive, in nats; zero with a single draw.

    Args:
        probs: (S, B, C), one slice per posterior draw.

    Returns:
        (B,), non-negative up to rounding.

    Raises:
        ShapeError: if probs is not 3-D.

    References:
        Houlsby et al., 2011. arXiv:1112.5745
    """
    return predictive_entropy(probs) - expected_entropy(probs)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The posterior predictive of one question, as plain numbers.

    Attributes:
        probabilities: C numbers in [0, 1] that sum to 1.
        std: spread of each over the draws (population standard deviation).
        top: index of the most probable choice, the first of equals.
        confidence: its probability.
        predictive_entropy: total uncertainty, nats.
        expected_entropy: aleatoric part, nats.
        mutual_information: epistemic part, nats.
    """

    probabilities: tuple[float, ...]
    std: tuple[float, ...]
    top: int
    confidence: float
    predictive_entropy: float
    expected_entropy: float
    mutual_information: float


def summarize(probs: Tensor) -> Prediction:
    """Everything an answer reports about one question, computed in float64.

    Args:
        probs: (S, C), one row per posterior draw.

    Raises:
        ShapeError: if probs is not 2-D.
        NumericalError: if a probability is not finite.
    """
    if probs.ndim != 2:
        raise ShapeError(f"got probabilities of shape {tuple(probs.shape)}, expected (S, C)")
    if not bool(probs.isfinite().all()):
        raise NumericalError("got probabilities that are not finite, expected finite ones")
    probs = probs.detach().cpu().double()
    probs = (probs / probs.sum(-1, keepdim=True))[:, None]  # (S, 1, C)
    mean = predictive_mean(probs)[0]
    total, aleatoric = predictive_entropy(probs).item(), expected_entropy(probs).item()
    top = int(mean.argmax())
    return Prediction(
        probabilities=tuple(mean.tolist()),
        std=tuple(probs[:, 0].std(0, correction=0).tolist()),
        top=top,
        confidence=mean[top].item(),
        predictive_entropy=total,
        expected_entropy=aleatoric,
        mutual_information=max(0.0, total - aleatoric),
    )
