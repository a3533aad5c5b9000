"""Ways to make the probabilities of unfamiliar questions modest, none of which has seen a foreign question.

one temperature: the temperature and the lapse rate that an adapter is served with.
density-aware temperature: T exp(b max(0, d)) for the standardised distance d behind the familiarity; T and b >= 0 are
    fitted on the validation rows (after Tomani et al., 2023, arXiv:2302.05118).
guesses: (1 - g) p + g / C under every draw. In distribution the p-value is uniform on the ranks 1 to n + 1 over n + 1,
    so that guesses cost at most the mean over the ranks of -log(1 - g) of NLL, for any adapter. The whole budget is
    spent either on rank 1, which no reference row reaches, or on the ranks beyond a gate of 5 %, as 1 / rank.
"""

import torch
from scipy.optimize import minimize
from torch import Tensor

from blora.decision.metrics import nll
from blora.decision.temperature import temper

__all__ = ["BUDGET", "WAYS", "density_aware", "guess_shares", "guessed", "temperatures"]

# The most that guesses may cost in distribution, in nats.
BUDGET = 0.002
GATE = 0.05
WAYS = ("one temperature", "density-aware temperature", "guesses, rank 1", "guesses, 1 / rank")


def guess_shares(n_reference: int, *, spread: bool) -> Tensor:
    """Return the guess share g (n + 1,) of each rank of the p-value.

    >>> shares = guess_shares(379, spread=True)
    >>> round(float(-(1 - shares).log().mean()), 6)
    0.002
    """
    ranks = torch.arange(1, n_reference + 2, dtype=torch.float64)
    weight = (1 / ranks) * (ranks <= max(1, int(GATE * len(ranks)))) if spread else (ranks == 1).double()
    return 1 - (-BUDGET * len(ranks) * weight / weight.sum()).exp()


def guessed(probs: Tensor, p_values: Tensor, shares: Tensor, present: Tensor) -> Tensor:
    """Return probabilities (S, N, C) with the guess share of each row's p-value (N,), over its choices (N, C)."""
    ranks = (p_values * len(shares)).round().long() - 1
    share = shares[ranks][:, None]  # (N, 1)
    return (1 - share) * probs + share * present / present.sum(-1, keepdim=True)


def density_aware(log_probs: Tensor, distances: Tensor, labels: Tensor, lapse: float) -> tuple[float, float]:
    """Return the logarithm of T and b of a density-aware temperature with the lowest NLL on validation rows.

    Args:
        log_probs: (S, N, C) of the validation rows.
        distances: (N,) their distances.
        labels: (N,).
        lapse: the lapse rate, which stays.
    """

    def loss(found: "list[float]") -> float:
        temperature = temperatures(distances, *found)
        return nll(temper(log_probs, temperature, lapse).mean(0), labels)

    best = minimize(
        loss, [0.0, 0.1], method="Nelder-Mead", bounds=[(-3, 3), (0, 3)], options={"xatol": 1e-3, "fatol": 1e-5}
    )
    return float(best.x[0]), float(best.x[1])


def temperatures(distances: Tensor, log_temperature: float, slope: float) -> Tensor:
    """Return the temperature (N,) of each row."""
    return (log_temperature + slope * distances.double().clamp_min(0)).exp()
