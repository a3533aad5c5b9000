"""The table of scores, which measure the certainty of an answer.

Policies, requests, answers, reasons, flags, metrics and the dashboard are generated from the rows below. To add a
score, add its row. The client imports this table without torch, so a row may only call methods of the tensors that it
is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal, overload

from blora.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DRAWN",
    "SCORES",
    "TABLE",
    "TOLERANCE",
    "Score",
    "ScoreName",
    "entropy",
    "expected_entropy",
    "leads",
    "mutual_information",
    "predictive_entropy",
    "predictive_mean",
    "scores_of",
]

# Probabilities come from float32; a value this close to its threshold counts as equal to it, which is no failure.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A number that measures the certainty of an answer.

    Attributes:
        name: name of the field in an answer.
        high_is_certain: whether high values mean certainty. Such a score is a share with 1 at certainty; any other
            score is an uncertainty with 0 at certainty.
        unit: unit of the values; empty for a share.
        of: function from recalibrated probabilities (S, B, C), one slice per posterior draw, to values (B,); None for a
            score of the question alone, which not every adapter has.
        with_guesses: the same for answers with guesses (`blora.decision.guesses`), from the probabilities and those
            before; None if the probabilities alone count.
        parts: function from the same probabilities to numbers (S, B, K) for each draw. The score is the smallest of
            the K means over draws, so that the spread of these numbers bounds the effect of further draws; see
            `blora.decision.stopping`.
        rises_with_draws: whether few draws underestimate the score, by up to the mutual information / (S - 1).
        fewest_draws: smallest number of draws for which the score is defined.
        why: name of the reason to abstain, if it is not the usual one.
        has_threshold: whether policies have a threshold on the score; if not, answers only report it.
        meaning: a sentence for metrics and documents.
        noun: the subject of "is lower" or "is higher" in a sentence about the threshold.
    """

    name: str
    high_is_certain: bool
    unit: Literal["", "nats"] = ""
    of: "Callable[[Tensor], Tensor] | None" = None
    with_guesses: "Callable[[Tensor, Tensor], Tensor] | None" = None
    parts: "Callable[[Tensor], Tensor] | None" = None
    rises_with_draws: bool = False
    fewest_draws: int = 1
    why: str = ""
    has_threshold: bool = True
    meaning: str
    noun: str

    @property
    def title(self) -> str:
        """The name with spaces in place of underscores."""
        return self.name.replace("_", " ")

    @property
    def threshold(self) -> str:
        """The name of the threshold in a policy."""
        return f"{'min' if self.high_is_certain else 'max'}_{self.name}"

    @property
    def flag(self) -> str:
        """The command-line flag of the threshold."""
        return f"--{self.threshold.replace('_', '-')}"

    @property
    def reason(self) -> str:
        """The name of the reason to abstain when the threshold fails."""
        return self.why or f"{'low' if self.high_is_certain else 'high'}_{self.name}"

    @property
    def failure(self) -> str:
        """A clause that describes a failed threshold."""
        return f"the {self.noun} is {'lower' if self.high_is_certain else 'higher'}"

    @property
    def metric(self) -> str:
        """The name of the Prometheus histogram of the values."""
        return f"blora_{self.name}_{self.unit}" if self.unit else f"blora_{self.name}"

    @property
    def greatest(self) -> float:
        """The largest value for any number of choices; the smallest is 0."""
        return 1.0 if self.high_is_certain else inf

    def values(self, probs: "Tensor", draws: "Tensor | None" = None) -> "Tensor":
        """Return the score (B,) of probabilities, clamped to 0 and its greatest value against rounding.

        Args:
            probs: (S, B, C).
            draws: the same before guesses were added; None if none were.
        """
        assert self.of is not None  # a score in DRAWN
        if draws is not None and self.with_guesses is not None:
            found = self.with_guesses(probs, draws)
        else:
            found = self.of(probs)
        return found.clamp(0.0, self.greatest) + 0.0  # turns -0.0 into 0.0

    def certainty(self, values: "Tensor") -> "Tensor":
        """Return values with the sign at which higher is more certain; applied twice, this returns the values."""
        return values if self.high_is_certain else -values

    @overload
    def passes(self, value: float, threshold: float) -> bool: ...
    @overload
    def passes(self, value: "Tensor", threshold: "float | Tensor") -> "Tensor": ...
    def passes(self, value: "float | Tensor", threshold: "float | Tensor") -> "bool | Tensor":
        """Return whether a value is at least as certain as a threshold, which NaN never is.

        Every policy, proof and count is by this comparison.

        >>> SCORES["confidence"].passes(0.7, threshold=0.8), SCORES["mutual_information"].passes(0.7, threshold=0.8)
        (False, True)
        """
        return value >= threshold - TOLERANCE if self.high_is_certain else value <= threshold + TOLERANCE

    def fails(self, value: float, threshold: float) -> bool:
        """Return whether a value is less certain than a threshold, or NaN."""
        return not self.passes(value, threshold)


# Functions for the rows of the table


def entropy(probs: "Tensor") -> "Tensor":
    """Return the Shannon entropy over the last dimension, in nats, with 0 log 0 = 0.

    >>> import torch
    >>> entropy(torch.tensor([0.5, 0.5, 0.0])).item() == torch.tensor(2.0).log().item()
    True
    """
    return -probs.xlogy(probs).sum(-1)


def predictive_mean(probs: "Tensor") -> "Tensor":
    """Return the posterior predictive: probabilities, never logits, averaged over draws.

    Args:
        probs: (S, B, C).

    Returns:
        (B, C).

    Raises:
        ShapeError: if probs is not 3-D.
    """
    return _draws(probs).mean(0)


def predictive_entropy(probs: "Tensor") -> "Tensor":
    """Return the total uncertainty H[E_w p(y | x, w)] in nats, (B,), from probs (S, B, C)."""
    return entropy(predictive_mean(probs))


def expected_entropy(probs: "Tensor") -> "Tensor":
    """Return the aleatoric uncertainty E_w H[p(y | x, w)] in nats, (B,), from probs (S, B, C)."""
    return entropy(_draws(probs)).mean(0)


def mutual_information(probs: "Tensor") -> "Tensor":
    """Return the epistemic uncertainty I(y; w | x) of a posterior predictive, in nats; zero with a single draw.

    Args:
        probs: (S, B, C), one slice per posterior draw.

    Returns:
        (B,), non-negative up to rounding.

    Raises:
        ShapeError: if probs is not 3-D.

    References:
        Houlsby et al., 2011. arXiv:1112.5745
    """
    return predictive_entropy(probs) - expected_entropy(probs)


def leads(probs: "Tensor") -> "Tensor":
    """Return the leader's lead over each choice under each draw, (S, B, C), from probs (S, B, C).

    The leader is the most probable choice of the mean. The lead is set to 1 for the leader itself and for choices that
    a row does not have, whose probability is 0.
    """
    mean = predictive_mean(probs)
    leader = mean.argmax(-1, keepdim=True)  # (B, 1)
    of_draws = probs.gather(-1, leader.expand(len(probs), -1, -1)) - probs
    return of_draws.masked_fill((mean == 0).scatter(-1, leader, True), 1)


def _leader(probs: "Tensor") -> "Tensor":
    """Return the probability of the mean's leader under each draw, (S, B, 1)."""
    leader = predictive_mean(probs).argmax(-1, keepdim=True)
    return probs.gather(-1, leader.expand(len(probs), -1, -1))


def _cross_entropy(probs: "Tensor") -> "Tensor":
    """Return each draw's cross-entropy with the mean of the draws, (S, B), whose mean is the predictive entropy."""
    return -probs.xlogy(predictive_mean(probs)).sum(-1)


def _draws(probs: "Tensor") -> "Tensor":
    if probs.ndim != 3 or probs.shape[0] < 1:
        raise ShapeError(f"got probabilities of shape {tuple(probs.shape)}, expected (S, B, C) with S >= 1")
    return probs


# Answers have their fields in this order. If two scores reach the same expected coverage, calibration takes the first.
TABLE = (
    Score(
        name="confidence",
        high_is_certain=True,
        of=lambda probs: predictive_mean(probs).amax(-1),
        parts=_leader,
        meaning="Probability of the leading choice.",
        noun="leader's probability",
    ),
    Score(
        name="predictive_entropy",
        high_is_certain=False,
        unit="nats",
        of=predictive_entropy,
        parts=lambda probs: _cross_entropy(probs)[..., None],
        rises_with_draws=True,
        meaning="Entropy of the answer's probabilities.",
        noun="predictive entropy, in nats,",
    ),
    Score(
        name="expected_entropy",
        high_is_certain=False,
        unit="nats",
        of=expected_entropy,
        with_guesses=lambda probs, draws: predictive_entropy(probs) - mutual_information(draws),
        parts=lambda probs: entropy(probs)[..., None],
        has_threshold=False,
        meaning="The part of the entropy that would remain if the weights were known.",
        noun="expected entropy, in nats,",
    ),
    Score(
        name="mutual_information",
        high_is_certain=False,
        unit="nats",
        of=mutual_information,
        with_guesses=lambda _, draws: mutual_information(draws),
        parts=lambda probs: (_cross_entropy(probs) - entropy(probs))[..., None],
        rises_with_draws=True,
        fewest_draws=2,
        meaning="The part of the entropy that comes from uncertainty about the weights.",
        noun="mutual information, in nats,",
    ),
    Score(
        name="margin",
        high_is_certain=True,
        of=lambda probs: -predictive_mean(probs).topk(2).values.diff()[..., 0],
        parts=leads,  # further draws may make any other choice the second one
        meaning="Difference in probability between the leading choice and the second one.",
        noun="margin between the two leading choices",
    ),
    Score(
        name="familiarity",
        high_is_certain=True,
        why="unfamiliar_question",
        meaning="Conformal p-value of the question: the share of familiar questions that are at least as unusual.",
        noun="familiarity",
    ),
)

DRAWN = {score.name: score for score in TABLE if score.of is not None}
"""The scores that the draws of an answer determine, by name."""

SCORES = {score.name: score for score in TABLE if score.has_threshold}
"""The scores on which policies have thresholds, by name."""

if TYPE_CHECKING:
    ScoreName = str
else:
    ScoreName = Literal[tuple(SCORES)]  # pydantic refuses other names; a type checker cannot read the table


def scores_of(probs: "Tensor", draws: "Tensor | None" = None) -> "dict[ScoreName, Tensor]":
    """Return the values (N,) of each score with a threshold that S draws suffice for; see `Score.values`."""
    return {
        name: score.values(probs, draws)
        for name, score in DRAWN.items()
        if score.has_threshold and len(probs) >= score.fewest_draws
    }
