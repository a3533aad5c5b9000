"""When enough draws have been seen: the decision that all of them would give is settled.

A decision is which choice leads and whether the policy lets it out. Each part of it is a mean of one number a draw that
ends above or below a limit, exactly so for the scores that are no plain averages too:

- a lead: the leader's probability less that of each other choice, against 0;
- a score: the least of the means of its `parts` in `blora.scores`, against its threshold. The confidence has one part,
  the leader's probability; the predictive entropy a draw's cross-entropy with the mean of the draws; the mutual
  information the same less the draw's own entropy. Where a score has several parts, each of them may become the least.

After s of S draws, the mean of all S is taken to lie within Student's t times the standard error of the mean so far.
The more of the draws have been seen, the less is left to differ: the variance of that error is
sigma^2 / s * (1 - s / S). Looks are taken after 4, 8, 16, ... draws, and the stated error is divided among the looks
and the limits, the lead being one.

The entropy of a mean of few draws is too low, by the delta method as much as I / (s - 1) * (1 - s / S) of the entropy
and of the mutual information I itself; both may rise so much further.

That draws scatter like a normal distribution is an assumption, which a draw unlike all before it breaks; under a
threshold on the mutual information, a sum of squares, up to twice as many decisions differ as stated. The stated error
is an aim, then. What is proved of a calibrated threshold is proved of the answers as they go out, early ones included.

References:
    Cochran, 1977, "Sampling Techniques", chapter 2: the finite population correction.
"""

import math

import torch
from scipy.special import stdtrit
from torch import Tensor

from blora.decision.abstention import Policy
from blora.errors import ShapeError
from blora.scores import SCORES, Score, ScoreName, leads, mutual_information

__all__ = ["draws_used", "looks", "reach", "settled"]

FIRST_LOOK = 4


def looks(n_samples: int) -> list[int]:
    """The numbers of draws after which is looked whether they are enough; the last is all of them.

    >>> looks(16), looks(6), looks(3)
    ([4, 8, 16], [4, 6], [3])
    """
    doublings = max(0, math.ceil(math.log2(n_samples / FIRST_LOOK)))
    return [*(FIRST_LOOK << k for k in range(doublings)), n_samples]


def reach(probs: Tensor, n_samples: int, error: float, n_limits: int = 1) -> dict[ScoreName, Tensor]:
    """How far each score may still move before all draws are seen.

    Args:
        probs: (s, N, C), the draws seen so far, 1 < s < S; 0 for choices that a row does not have.
        n_samples: S, of all draws.
        error: the probability that may be risked, over all looks, of deciding otherwise than S draws would.
        n_limits: thresholds that will decide.

    Returns:
        (N,) for each score, in its own unit; infinite where another choice may still take the lead.
    """
    s, probs = len(probs), probs.double()
    share = error / (len(looks(n_samples)) * (1 + n_limits))
    width = stdtrit(s - 1, 1 - share) * math.sqrt((1 - s / n_samples) / s)
    ahead = leads(probs)
    leader_stays = (ahead.mean(0) > width * ahead.std(0)).all(-1)  # (N,)
    rise = mutual_information(probs) * (1 - s / n_samples) / (s - 1)
    reaches = {
        name: _reach(score, probs, width) + (rise if score.rises_with_draws else 0) for name, score in SCORES.items()
    }
    return {name: distance.masked_fill(~leader_stays, torch.inf) for name, distance in reaches.items()}


def _reach(score: Score, probs: Tensor, width: float) -> Tensor:
    """Return the farthest (N,) that one of a score's parts may go below the least of them, in its own unit.

    Upwards the score goes no farther: it is never above the part that is the least now, which rises by its own width.
    """
    parts = score.parts(probs)  # (s, N, K)
    means = parts.mean(0)
    above = means - means.amin(-1, keepdim=True)
    return (width * parts.std(0) - above).amax(-1)


def settled(probs: Tensor, n_samples: int, policy: Policy, error: float) -> Tensor:
    """Which decisions may be taken now.

    Args:
        probs: (s, N, C), the draws seen so far; 0 for choices that a row does not have.
        n_samples: S, of all draws.
        policy: the thresholds that will decide.
        error: as in `reach`.

    Returns:
        (N,) bool.

    Raises:
        ShapeError: if probs is not 3-D, or has more than S draws.
    """
    if probs.ndim != 3 or not 1 <= len(probs) <= n_samples:
        raise ShapeError(f"got probabilities {tuple(probs.shape)}, expected (s, N, C) with s from 1 to {n_samples}")
    s = len(probs)
    if s == n_samples or s == 1:  # one draw says nothing of its spread
        return torch.full(probs.shape[1:2], s == n_samples)
    limits = policy.limits()
    reaches = reach(probs, n_samples, error, len(limits))
    values = {name: SCORES[name].of(probs.double()) for name in limits}
    clear = torch.stack([SCORES[name].certainty(values[name] - limit) for name, limit in limits.items()])  # (L, N)
    needed = torch.stack([reaches[name] for name in limits])
    return (clear > needed).all(0) | (clear < -needed).any(0)


def draws_used(probs: Tensor, policy: Policy, error: float) -> Tensor:
    """How many of its draws each row takes that stops at the first look at which it is settled.

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
