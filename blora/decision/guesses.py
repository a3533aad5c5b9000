"""Guesses: modest probabilities for a question that is far beyond the rows whose distances are known.

Its answer is (1 - g) p + g / C under every draw, for C choices and g = `SHARE`. The mutual information stays that of p:
guesses say that the choices are not told apart, and must not look like agreement of the draws.

Guesses begin at a distance that hardly any familiar question has, so that they cost `BUDGET` of NLL in distribution:
what they would cost on every validation row, times the probability of such a distance. One familiar question in n + 1
is farther than n reference rows; beyond the farthest row, the probability is taken to fall exponentially. The farthest
twentieth of the rows, k of them, exceed the next row by m in the mean, which k rows tell only roughly: the predictive
probability of a further x is (1 + x / (k m)) ** -k, which is more than exp(-x / m). The distance is never nearer than
the farthest row. With reference rows of fewer than 20 texts there are no guesses.
"""

import math

from torch import Tensor

from blora.decision.metrics import SMALLEST
from blora.decision.temperature import guessed
from blora.scores import predictive_mean

__all__ = ["BUDGET", "SHARE", "beginning_of_guesses", "modest"]

# The share of guesses; the rest keeps the choices in their order.
SHARE = 0.95
# The NLL, in nats, that guesses are expected to cost in distribution.
BUDGET = 0.001
# One reference row in this number is of the tail; fewer rows have none.
TAIL = 20


def beginning_of_guesses(reference: Tensor, probs: Tensor, labels: Tensor, rows_per_text: float = 1.0) -> float | None:
    """Return the distance beyond which answers are guesses; None with fewer than `TAIL` texts in the reference.

    Args:
        reference: (n,) distances of rows that were not trained on.
        probs: (S, N, C) recalibrated probabilities of validation rows, 0 for choices that a row does not have.
        labels: (N,).
        rows_per_text: mean number of rows about one text, which tell as little about the tail as one of them.

    >>> import torch
    >>> sure = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]])
    >>> far = torch.arange(100.0) / 10  # the farthest twentieth is 0.3 beyond the next one in the mean
    >>> round(beginning_of_guesses(far, sure, torch.tensor([0, 0])), 2), float(far.max())
    (10.46, 9.899999618530273)
    """
    n_texts = round(len(reference) / rows_per_text)
    k, n_far = n_texts // TAIL, len(reference) // TAIL
    if k == 0:
        return None
    mean = predictive_mean(probs.double())
    own = labels.long()[:, None]
    before, after = (one.gather(1, own).clamp_min(SMALLEST).log() for one in (mean, guessed(mean, SHARE, mean > 0)))
    cost = float((before - after).mean()) / (n_texts + 1)
    descending = reference.double().sort(descending=True).values
    excess = float((descending[:n_far] - descending[n_far]).mean())
    return float(descending[0]) + k * excess * math.expm1(math.log(max(1.0, cost / BUDGET)) / k)


def modest(probs: Tensor, shares: Tensor, present: Tensor) -> Tensor:
    """Return probabilities (S, B, C) with each question's share of guesses, (B,).

    Args:
        probs: (S, B, C).
        shares: (B,), 0 for questions that are answered without guesses.
        present: (B, C) mask of the choices of each question.
    """
    return guessed(probs, shares[:, None], present) if bool(shares.any()) else probs
