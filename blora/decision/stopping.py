"""Early stopping of draws, once further draws are unlikely to change the decision.

A decision consists of the leading choice and whether the policy allows it. Each part compares the mean over draws of
one number per draw with a limit; this holds exactly, also for scores that are not plain averages:

- a lead: the leader's probability minus the probability of each other choice, compared with 0;
- a score: the smallest of the means of its `parts` in `blora.scores`, compared with its threshold. The confidence has
  one part, the leader's probability; the predictive entropy has a draw's cross-entropy with the mean of the draws; the
  mutual information has this cross-entropy minus the draw's own entropy. If a score has several parts, each of them may
  become the smallest.

After s of S draws, the mean of all S is assumed to lie within Student's t times the standard error of the current mean.
Because the draws are a finite population, the variance of that error is sigma^2 / s * (1 - s / S). Decisions are
examined after 4, 8, 16, ... draws ("looks"), and the stated error is divided evenly among the looks and the limits, of
which the lead is one.

The entropy of a mean of few draws is biased downwards, by the delta method by I / (s - 1) * (1 - s / S) for the mutual
information I. The bias is the same for the predictive entropy and the mutual information, and both may rise by it.

The normal distribution of the draws is an assumption, which an outlying draw violates. The stated error is therefore
nominal: up to twice the stated share of decisions differ, and under a threshold on the mutual information, a sum of
squares, several times that share, without a useful limit if single draws are far from the others.
The guarantee of a calibrated threshold is not affected: calibration proves it for the answers with early stopping.

References:
    Cochran, 1977, "Sampling Techniques", chapter 2: the finite population correction.
"""

import math

import torch
from scipy.special import stdtrit
from torch import Tensor

from blora.decision.abstention import Policy
from blora.errors import ShapeError
from blora.scores import DRAWN, SCORES, Score, ScoreName, leads, mutual_information

__all__ = ["draws_used", "looks", "reach", "settled"]

FIRST_LOOK = 4


def looks(n_samples: int) -> list[int]:
    """Return the numbers of draws after which stopping is considered; the last is all of the draws.

    >>> looks(16), looks(6), looks(3)
    ([4, 8, 16], [4, 6], [3])
    """
    doublings = max(0, math.ceil(math.log2(n_samples / FIRST_LOOK)))
    return [*(FIRST_LOOK << k for k in range(doublings)), n_samples]


def reach(probs: Tensor, n_samples: int, error: float, n_limits: int = 1) -> dict[ScoreName, Tensor]:
    """Return the distance by which each score may still change until all draws are seen.

    Args:
        probs: (s, N, C), the draws seen so far, 1 < s < S; 0 for choices that a row does not have.
        n_samples: S, the number of all draws.
        error: nominal probability, over all looks, of a decision that differs from the decision of all S draws.
        n_limits: number of thresholds in the policy.

    Returns:
        (N,) for each score, in the score's own unit; infinite if another choice may still take the lead.
    """
    s, probs = len(probs), probs.double()
    share = error / (len(looks(n_samples)) * (1 + n_limits))
    width = stdtrit(s - 1, 1 - share) * math.sqrt((1 - s / n_samples) / s)
    ahead = leads(probs)
    leader_stays = (ahead.mean(0) > width * ahead.std(0)).all(-1)  # (N,)
    rise = mutual_information(probs) * (1 - s / n_samples) / (s - 1)
    reaches = {
        name: _reach(score, probs, width) + (rise if score.rises_with_draws else 0)
        for name, score in DRAWN.items()
        if score.has_threshold
    }
    return {name: distance.masked_fill(~leader_stays, torch.inf) for name, distance in reaches.items()}


def _reach(score: Score, probs: Tensor, width: float) -> Tensor:
    """Return the largest distance (N,) by which any of a score's parts may fall below the current smallest part.

    The distance also bounds a rise of the score: the score never exceeds the part that is the smallest now, and that
    part rises by at most its own width.
    """
    assert score.parts is not None  # the score is in DRAWN
    parts = score.parts(probs)  # (s, N, K)
    means = parts.mean(0)
    above = means - means.amin(-1, keepdim=True)
    return (width * parts.std(0) - above).amax(-1)


def settled(probs: Tensor, n_samples: int, policy: Policy, error: float) -> Tensor:
    """Return a mask of the questions whose decision is settled after the draws seen so far.

    Args:
        probs: (s, N, C), the draws seen so far; 0 for choices that a row does not have.
        n_samples: S, the number of all draws.
        policy: the thresholds of the decision.
        error: as in `reach`.

    Returns:
        (N,) bool.

    Raises:
        ShapeError: if probs is not 3-D, or has more than S draws.
    """
    if probs.ndim != 3 or not 1 <= len(probs) <= n_samples:
        raise ShapeError(f"got probabilities {tuple(probs.shape)}, expected (s, N, C) with s from 1 to {n_samples}")
    s = len(probs)
    if s == n_samples or s == 1:  # the spread cannot be estimated from one draw
        return torch.full(probs.shape[1:2], s == n_samples)
    limits = policy.limits()
    reaches = reach(probs, n_samples, error, len(limits))
    values = {name: SCORES[name].values(probs.double()) for name in limits}
    clear = torch.stack([SCORES[name].certainty(values[name] - limit) for name, limit in limits.items()])  # (L, N)
    needed = torch.stack([reaches[name] for name in limits])
    return (clear > needed).all(0) | (clear < -needed).any(0)


def draws_used(probs: Tensor, policy: Policy, error: float) -> Tensor:
    """Return the number of draws each row takes if it stops at the first look at which its decision is settled.

    Args:
        probs: (S, N, C) under all draws.
        policy: as in `settled`.
        error: as in `reach`.

    Returns:
        (N,) integers from 1 to S.
    """
    used = torch.full(probs.shape[1:2], len(probs))
    for look in reversed(looks(len(probs))):
        used[settled(probs[:look], len(probs), policy, error)] = look
    return used
