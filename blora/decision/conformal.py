"""Split-conformal prediction: prediction sets that hold the right choice with a stated probability.

The nonconformity score of a row is one minus the probability of its label (LAC). A prediction set holds every choice
whose score does not exceed a quantile of the scores of held-out rows. The set for a new question that is exchangeable
with these rows holds the right choice with a probability of at least the coverage, for any model and number of rows.

References:
    Vovk, Gammerman and Shafer, 2005.
    Sadinle, Lei and Wasserman, 2019. arXiv:1609.00451
"""

import math

import torch
from torch import Tensor

from blora.errors import ConfigError, ShapeError
from blora.scores import TOLERANCE

__all__ = ["conformal_quantile", "nonconformity", "prediction_sets", "proof_rows_needed"]


def nonconformity(probs: Tensor, labels: Tensor) -> Tensor:
    """Return one minus the label's probability, (B,), from the predictive mean (B, C) and labels (B,)."""
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ShapeError(
            f"got probabilities {tuple(probs.shape)} and labels {tuple(labels.shape)}, expected (B, C) and (B,)"
        )
    return 1 - probs.gather(1, labels.long()[:, None])[:, 0]


def proof_rows_needed(coverage: float) -> int:
    """Return the smallest number of held-out rows that allows prediction sets of a coverage.

    >>> proof_rows_needed(0.9)
    9
    """
    return math.ceil(coverage / (1 - coverage) - TOLERANCE)


def conformal_quantile(scores: Tensor, coverage: float) -> float:
    """Return the ceil((n + 1) coverage)-th smallest of n scores.

    Args:
        scores: (n,) nonconformity scores of held-out rows.
        coverage: smallest probability that a set holds the right choice.

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
    """Return a mask of the choices in each question's prediction set, which always holds the most probable choice.

    Args:
        probs: (B, C) predictive mean. A choice that a question does not have is in its set only if every choice is.
        quantile: result of `conformal_quantile`.

    Returns:
        (B, C) bool.
    """
    members = 1 - probs <= quantile + TOLERANCE
    leader = torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1]).bool()
    return members | leader
