"""Whether a promised selective risk is kept, by a test that may be looked at after every outcome.

Under the promise each answer is wrong with probability at most r, whatever came before. Then for every theta > r the
product of (theta / r)^x ((1 - theta) / (1 - r))^(1 - x) over outcomes x, 1 for wrong, is a non-negative
supermartingale, and so is its mean over a prior of theta, here a Beta(1/2, 1/2) cut to (r, 1). By Ville's inequality it
ever reaches 1 / alpha with probability at most alpha, however often it is looked at.

All of that assumes that an outcome is reported with the same probability, and as soon, whether the answer was right or
wrong: report all outcomes, or all outcomes of a random sample of the answers. Where mostly complaints are reported, a
promise that is kept is called broken.

An outcome may be corrected. The counts are then those of the corrected sequence, and the product of these is what it
would have been had each outcome been reported rightly at first; so the bound holds for the corrected outcomes too,
however often one looks. What was concluded before, from counts in which a right answer was a wrong one, rests on
something that never happened, and is dropped: the promise is called broken again as soon as the corrected counts say
so. Where a right answer becomes a wrong one nothing is dropped, for that makes the product larger at every time.
Corrections too must come whichever way they go.

References:
    Howard, Ramdas, McAuliffe, Sekhon, 2021. arXiv:1810.08240. Waudby-Smith, Ramdas, 2024. arXiv:2010.09686.
"""

import math

from scipy.special import betaincc, betaln

from blora.checks import require

__all__ = ["Promise"]

PRIOR = 0.5


class Promise:
    """Outcomes of answers under one promise, and the evidence against the promise.

    Assumes that the outcomes are those of all answers, or of a random sample of them.

    Args:
        target_risk: r, the promised probability of a wrong answer.
        alpha: the probability with which a promise that is kept may be called broken, ever.
    """

    def __init__(self, target_risk: float, alpha: float = 0.05) -> None:
        require(0 < target_risk < 1, f"target_risk = {target_risk}", "a number between 0 and 1")
        require(0 < alpha < 1, f"alpha = {alpha}", "a number between 0 and 1")
        self.target_risk = target_risk
        self.alpha = alpha
        self.n_outcomes = 0
        self.n_wrong = 0
        self.n_cleared = 0
        self._broken = False

    def add(self, *, wrong: bool) -> None:
        """One more outcome."""
        self.observe(self.n_outcomes + 1, self.n_wrong + wrong, self.n_cleared)

    def observe(self, n_outcomes: int, n_wrong: int, n_cleared: int) -> None:
        """The outcomes as they are now, of which others may have counted some.

        Args:
            n_outcomes: answers whose outcome is known.
            n_wrong: those that were wrong, corrections included.
            n_cleared: how many corrections from wrong to right there have been.
        """
        cleared = n_cleared > self.n_cleared
        self.n_outcomes, self.n_wrong, self.n_cleared = n_outcomes, n_wrong, n_cleared
        self._broken = (self._broken and not cleared) or self._rejected(self.target_risk)

    @property
    def broken(self) -> bool:
        """Whether the evidence against the promise has been enough since an outcome was last corrected to right."""
        return self._broken

    @property
    def realised_risk(self) -> float | None:
        """Share of wrong answers so far."""
        return self.n_wrong / self.n_outcomes if self.n_outcomes else None

    @property
    def lower_bound(self) -> float:
        """A risk that the true one exceeds, at all times together with probability 1 - alpha.

        For answers that are all wrong with the same probability.
        """
        low, high = 0.0, self.realised_risk or 0.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (middle, high) if self._rejected(middle) else (low, middle)
        return low

    def _rejected(self, risk: float) -> bool:
        """Return whether the mixture has reached 1 / alpha against this risk."""
        wrong, right = self.n_wrong, self.n_outcomes - self.n_wrong
        beyond = betaincc(PRIOR + wrong, PRIOR + right, risk)
        if beyond == 0:  # to the last digit all evidence is for less
            return False
        mixed = betaln(PRIOR + wrong, PRIOR + right) + math.log(beyond)
        prior = betaln(PRIOR, PRIOR) + math.log(betaincc(PRIOR, PRIOR, risk))
        under = wrong * math.log(risk) + right * math.log1p(-risk)
        return bool(mixed - prior - under >= -math.log(self.alpha))
