"""Ways to make the probabilities of unfamiliar questions modest, none of which has seen a foreign question.

without guesses: the temperature and the lapse rate that an adapter is served with.
density-aware temperature: T exp(b max(0, d)) for the standardised distance d behind the familiarity; T and b >= 0 are
    fitted on the validation rows (after Tomani et al., 2023, arXiv:2302.05118).
as served: the first, with guesses beyond every reference row (`blora.decision.guesses`).
"""

from scipy.optimize import minimize
from torch import Tensor

from blora.decision.metrics import nll
from blora.decision.temperature import temper

__all__ = ["SERVED", "WAYS", "density_aware", "temperatures"]

SERVED = "as served"
WAYS = ("without guesses", "density-aware temperature", SERVED)


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
