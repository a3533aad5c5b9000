"""Anytime-valid test of a promised selective risk, which may be evaluated after every outcome.

Under the promise each answer is wrong with probability at most r, given all earlier outcomes. Then for every theta > r
the product of (theta / r)^x ((1 - theta) / (1 - r))^(1 - x) over outcomes x, 1 for wrong, is a non-negative
supermartingale. Its mean over a prior of theta, here a Beta(1/2, 1/2) truncated to (r, 1), is one too. By Ville's
inequality this mean ever reaches 1 / alpha with probability at most alpha, at any number of evaluations.

The test assumes that an outcome is reported with the same probability, and with the same delay, whether the answer was
right or wrong: report all outcomes, or all outcomes of a random sample of the answers. If mostly complaints are
reported, the test calls a kept promise broken.

The test also assumes outcomes of answers about different texts. Answers to several questions about one text tend to be
wrong together, so that one error would count several times: choose one question about each text independently of the
answers, and add its outcome if it was answered. Of a sample of the texts, each has to be drawn with the same
probability, however many questions about it were asked. If some texts are asked about all the time, the counted ones
are mostly rare ones, unlike the calibration's rows, and alpha may be exceeded.

Outcomes may be corrected. The counts are then the counts of the corrected sequence, and the product is the same as if
each outcome had been reported correctly at first, so the bound also holds for corrected outcomes at any number of
evaluations. A correction from wrong to right drops an earlier rejection, since its counts held an error that never
happened; the promise is called broken again as soon as the corrected counts reject it. A correction from right to wrong
drops nothing, since it makes the product larger at every time. Corrections in both directions must be reported alike.

References:
    Howard, Ramdas, McAuliffe, Sekhon, 2021. arXiv:1810.08240. Waudby-Smith, Ramdas, 2024. arXiv:2010.09686.
"""

import math

from scipy.special import betaincc, betaln

from blora.config.checks import require

__all__ = ["Promise"]

PRIOR = 0.5
# The largest probability that a kept promise is ever called broken.
ALPHA = 0.05


class Promise:
    """Outcomes of answers under one promise, and the evidence against the promise.

    The test assumes outcomes of all answers, or of a random sample of them, with one answer for each text.

    Args:
        target_risk: r, the promised upper bound of the probability of a wrong answer.

    Attributes:
        rejected_at: number of corrections from wrong to right when the test last rejected the promise; -1 if it never
            did.
    """

    def __init__(self, target_risk: float) -> None:
        require(0 < target_risk < 1, f"target_risk = {target_risk}", "a number between 0 and 1")
        self.target_risk = target_risk
        self.n_outcomes = 0
        self.n_wrong = 0
        self.n_cleared = 0
        self.rejected_at = -1

    def observe(self, n_outcomes: int, n_wrong: int, n_cleared: int, rejected_at: int = -1) -> None:
        """Set the current counts, which may include outcomes that other processes counted.

        Args:
            n_outcomes: number of answers with a known outcome.
            n_wrong: number of wrong answers, after corrections.
            n_cleared: number of corrections from wrong to right.
            rejected_at: value of `n_cleared` at the last rejection by other processes; -1 without one.
        """
        if n_cleared < self.n_cleared:  # the counts were lost
            self.rejected_at = n_cleared if self.broken else -1
        self.n_outcomes, self.n_wrong, self.n_cleared = n_outcomes, n_wrong, n_cleared
        self.rejected_at = max(self.rejected_at, rejected_at)
        if self.broken or self._rejected(self.target_risk):
            self.rejected_at = n_cleared

    @property
    def broken(self) -> bool:
        """Return whether the test has rejected the promise since the last correction from wrong to right."""
        return self.rejected_at >= self.n_cleared

    @property
    def realised_risk(self) -> float | None:
        """The share of wrong answers, None without outcomes."""
        return self.n_wrong / self.n_outcomes if self.n_outcomes else None

    @property
    def lower_bound(self) -> float:
        """A lower confidence bound of the true risk, valid at all times together with probability 1 - ALPHA.

        The bound assumes that every answer is wrong with the same probability.
        """
        low, high = 0.0, self.realised_risk or 0.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (middle, high) if self._rejected(middle) else (low, middle)
        return low

    def _rejected(self, risk: float) -> bool:
        """Return whether the mixture has reached 1 / ALPHA against this risk."""
        return self._log_mixture(risk) >= -math.log(ALPHA)

    def _log_mixture(self, risk: float) -> float:
        """Return the logarithm of the mixture against this risk."""
        wrong, right = self.n_wrong, self.n_outcomes - self.n_wrong
        beyond = betaincc(PRIOR + wrong, PRIOR + right, risk)
        if beyond == 0:  # to float precision the posterior lies below the risk
            return -math.inf
        mixed = betaln(PRIOR + wrong, PRIOR + right) + math.log(beyond)
        prior = betaln(PRIOR, PRIOR) + math.log(betaincc(PRIOR, PRIOR, risk))
        under = wrong * math.log(risk) + right * math.log1p(-risk)
        return float(mixed - prior - under)
