"""Test martingale that notices, without labels, that the questions are no longer those of the calibration.

A question is unfamiliar if its familiarity is below the gate's `min_familiarity`. The calibration proved that at most a
share r of the questions like its rows are (`blora.decision.gate`). A bet on a share theta > r multiplies its stake by
theta / r for an unfamiliar question, and by (1 - theta) / (1 - r) for a familiar one: a fair or losing game as long as
the questions are like the calibration's, whatever their order. The wealth of all bets together, which is 1 at the
start, then ever reaches 1 / alpha with probability at most alpha (Ville's inequality), at any number of looks.

The bets differ in theta, and in the observation at which they start: the k-th starts with the stake 1 / (k (k + 1)),
and these stakes add up to 1. So a long time of familiar questions does not use up the wealth that notices the first
unfamiliar ones. The bets that have the same theta are kept as one sum. A limit on this sum, which only lowers the
wealth, lets the wealth fall soon after the questions are familiar again.

The test takes the share of unfamiliar questions given the calibration's rows, which are always the same ones. A
martingale on the p-values themselves would count the chance deviations of these rows from all familiar questions as
evidence, more with each answer.

The counted answers have to be about different texts, as the calibration's rows are. Several questions about one text
are familiar or unfamiliar together, so that their answers would bet several times on one observation. If some texts are
asked about all the time, those that are counted are mostly rare ones, unlike the calibration's rows, and alpha may be
exceeded.

References:
    Ville, 1939. Vovk, Wang, 2021: E-values. arXiv:1912.06116. Waudby-Smith, Ramdas, 2024. arXiv:2010.09686.
"""

import math
from dataclasses import dataclass

from blora.config.checks import require

__all__ = ["ALPHA", "DriftTest", "Seen"]

# Largest probability that the wealth ever reaches 1 / ALPHA without a drift.
ALPHA = 0.05
# The bets' theta lie these parts of the way from r to 1.
PARTS = (0.8, 0.4, 0.2, 0.1, 0.05, 0.025)
# Limit for the wealth.
LOG_MOST = math.log(1e4)


@dataclass(frozen=True, slots=True)
class Seen:
    """Counts of answers to questions that the calibration speaks of.

    Attributes:
        n_answers: number of answers, each about another text.
        n_unfamiliar: number of these whose question was unfamiliar.
    """

    n_answers: int = 0
    n_unfamiliar: int = 0

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.n_answers + other.n_answers, self.n_unfamiliar + other.n_unfamiliar)


class DriftTest:
    """The wealth of bets that more questions are unfamiliar than the calibration allows.

    Args:
        max_share: r, the proved upper bound of the share of unfamiliar questions.
    """

    def __init__(self, max_share: float) -> None:
        require(0 < max_share < 1, f"max_share = {max_share}", "a number between 0 and 1")
        thetas = [max_share + part * (1 - max_share) for part in PARTS]
        self._gains = [(math.log(theta / max_share), math.log((1 - theta) / (1 - max_share))) for theta in thetas]
        self._logs = [-math.inf] * len(thetas)
        self._seen = Seen()
        self._n_looks = 0

    def observe(self, seen: Seen) -> None:
        """Set the current counts, which may include answers that other processes counted.

        All answers since the last call are one observation: bets start before it and see all of it. If there are fewer
        familiar or unfamiliar questions than before, some answers were lost: no bet is made, because nobody can tell
        which of the others are new, and the next call starts from these counts.
        """
        n_unfamiliar = seen.n_unfamiliar - self._seen.n_unfamiliar
        n_familiar = seen.n_answers - self._seen.n_answers - n_unfamiliar
        self._seen = seen
        if n_unfamiliar < 0 or n_familiar < 0:
            return
        self._n_looks += 1
        stake = -math.log(self._n_looks * (self._n_looks + 1))
        for k, (gain, loss) in enumerate(self._gains):
            wealth = _log_sum(self._logs[k], stake) + n_unfamiliar * gain + n_familiar * loss
            self._logs[k] = min(wealth, LOG_MOST)

    @property
    def wealth(self) -> float:
        """The wealth of all bets, with the stakes of those that have not started."""
        started = math.fsum(map(math.exp, self._logs)) / len(self._logs)
        return started + 1 / (self._n_looks + 1)

    @property
    def noticed(self) -> bool:
        """Return whether the wealth is evidence of a drift."""
        return self.wealth >= 1 / ALPHA


def _log_sum(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b)) of a number b that is finite."""
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high))
