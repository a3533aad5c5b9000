"""Prediction sets that hold the right choice with a stated probability: split-conformal prediction.

The score of a row is one minus the probability of its label, known as LAC. The sets hold every choice whose own score
does not exceed a quantile of the scores of held-out rows; they then hold the right choice of a further question with a
probability of at least the coverage, for any model and any number of rows, if that question is exchangeable with them.

References:
    Vovk, Gammerman and Shafer, 2005.
    Sadinle, Lei and Wasserman, 2019. arXiv:1609.00451
"""

import math

import torch
from torch import Tensor

from blora.decision.abstention import TOLERANCE
from blora.errors import ConfigError, ShapeError

__all__ = ["conformal_quantile", "nonconformity", "prediction_sets", "proof_rows_needed"]


def nonconformity(probs: Tensor, labels: Tensor) -> Tensor:
    """One minus the probability of the label, (B,), from the predictive mean (B, C) and labels (B,)."""
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ShapeError(
            f"got probabilities {tuple(probs.shape)} and labels {tuple(labels.shape)}, expected (B, C) and (B,)"
        )
    return 1 - probs.gather(1, labels.long()[:, None])[:, 0]


def proof_rows_needed(coverage: float) -> int:
    """The fewest rows from which sets of a coverage can be had.

    >>> proof_rows_needed(0.9)
    9
    """
    return math.ceil(coverage / (1 - coverage) - TOLERANCE)


def conformal_quantile(scores: Tensor, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest of n scores.

    Args:
        scores: (n,) of held-out rows.
        coverage: probability with which sets are to hold the right choice.

    Raises:
        ConfigError: if there are too few rows for the coverage.
    """
    rank = math.ceil((len(scores) + 1) * coverage - TOLERANCE)
    if rank > len(scores):
        raise ConfigError(
            f"got {len(scores)} rows for prediction sets of coverage {coverage}, expected at least "
            f"{proof_rows_needed(coverage)}: bring more or ask for less coverage"
        )
    return float(scores.sort().values[rank - 1])


def prediction_sets(probs: Tensor, quantile: float) -> Tensor:
    """Which choices belong to the set of each question; the most probable one always does.

    Args:
        probs: (B, C) predictive mean. A choice that a question does not have is in its set only if every choice is.
        quantile: of `conformal_quantile`.

    Returns:
        (B, C) bool.
    """
    members = 1 - probs <= quantile + TOLERANCE
    leader = torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).bool()
    return members | leader
