"""Guesses: modest probabilities for a question that is farther from the training rows than every reference row.

Its answer is (1 - g) p + g / C under every draw, for C choices. The mutual information stays that of p: guesses say
that the choices are not told apart, and must not look like agreement of the draws. The familiarity of such a question
is the smallest that there is, 1 / (n + 1) for n reference rows, which is also how often a familiar question has it.
So the share costs at most `BUDGET` in distribution: g is the largest share, up to `MOST_GUESSES`, whose mean cost on
validation rows, over n + 1, is at most that.
"""

import torch
from scipy.optimize import brentq
from torch import Tensor

from blora.config.head import MOST_GUESSES
from blora.decision.temperature import guessed
from blora.scores import predictive_mean

__all__ = ["BUDGET", "guess_share", "modest"]

# The NLL, in nats, that guesses may cost in distribution.
BUDGET = 0.002
LEAST = torch.finfo(torch.float32).tiny  # against log 0


def guess_share(probs: Tensor, labels: Tensor, n_reference: int) -> float:
    """Return the share of guesses for questions that are farther than every reference row.

    Args:
        probs: (S, N, C) recalibrated probabilities of validation rows, 0 for choices that a row does not have.
        labels: (N,).
        n_reference: n, the number of reference rows.

    >>> sure = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]])
    >>> guess_share(sure, torch.tensor([0, 0]), 10_000)
    0.95
    >>> round(guess_share(sure, torch.tensor([0, 0]), 20), 3)  # few rows: 0.042 nats for one question in 21
    0.1
    """
    mean = predictive_mean(probs.double())
    present = mean > 0
    before = mean.gather(1, labels.long()[:, None]).clamp_min(LEAST).log()

    def over_budget(share: float) -> float:
        after = guessed(mean, share, present).gather(1, labels.long()[:, None]).clamp_min(LEAST).log()
        return float((before - after).mean()) / (n_reference + 1) - BUDGET

    if over_budget(MOST_GUESSES) <= 0:
        return MOST_GUESSES
    return float(brentq(over_budget, 0.0, MOST_GUESSES))


def modest(probs: Tensor, shares: Tensor) -> Tensor:
    """Return probabilities (S, B, C) with each question's share of guesses, (B,).

    Args:
        probs: (S, B, C), 0 under every draw for choices that a question does not have.
        shares: (B,), 0 for questions that are answered without guesses.
    """
    if not bool(shares.any()):
        return probs
    return guessed(probs, shares[:, None], (probs > 0).any(0))
