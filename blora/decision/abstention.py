"""Abstention: policies of thresholds on scores, and the decision to give or withhold an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from typing import Any, Literal

from blora.decision.uncertainty import Prediction
from blora.errors import ConfigError
from blora.scores import SCORES, Score, ScoreName

__all__ = ["AbstainReason", "Decision", "Policy", "decide", "strictest"]

_Thresholds: Any = make_dataclass(
    "_Thresholds",
    [(score.threshold, float | None, None) for score in SCORES.values()],
    frozen=True,
    slots=True,
    kw_only=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(_Thresholds):  # type: ignore[misc]  # a type checker cannot read the table
    """A threshold for each score in `blora.scores.SCORES`, or None, as in `Policy(min_confidence=0.9)`.

    An answer is given only if the prediction meets every threshold that is set.

    Attributes:
        source: whether a request or the adapter set the policy.
    """

    source: Literal["request", "adapter"] = "adapter"

    def __post_init__(self) -> None:
        if not self.limits():
            raise ConfigError(
                "got a policy without thresholds, expected at least one of "
                + ", ".join(score.threshold for score in SCORES.values())
            )
        for name, value in self.limits().items():
            score = SCORES[name]
            if not 0 <= value <= score.greatest or value == float("inf"):
                unlimited = score.greatest == float("inf")
                numbers = "a finite number of at least 0" if unlimited else f"a number from 0 to {score.greatest}"
                raise ConfigError(f"got policy {score.threshold} = {value}, expected {numbers}")

    def limits(self) -> dict[ScoreName, float]:
        """Return the thresholds that are set, by score name."""
        values = {name: getattr(self, score.threshold) for name, score in SCORES.items()}
        return {name: value for name, value in values.items() if value is not None}

    def thresholds(self) -> dict[str, float]:
        """Return the thresholds that are set, by threshold name, such as min_confidence."""
        return {SCORES[name].threshold: value for name, value in self.limits().items()}

    def check_draws(self, n_samples: int) -> None:
        """Raise an error if the policy limits a score that needs more different draws than there are.

        Raises:
            ConfigError: if a score needs more draws; the message names its threshold.
        """
        if (score := self.short_of_draws(n_samples)) is not None:
            raise ConfigError(
                f"got policy {score.threshold} with n_samples = {n_samples}, expected at least {score.fewest_draws} "
                "different draws: leave the threshold out, or take more draws of a posterior, which a plain LoRA lacks"
            )

    def short_of_draws(self, n_samples: int) -> Score | None:
        """Return the first limited score that needs more different draws than there are; None for none."""
        return next((SCORES[name] for name in self.limits() if n_samples < SCORES[name].fewest_draws), None)

    @classmethod
    def from_mapping(cls, thresholds: Mapping[str, float]) -> "Policy":
        """Return an adapter owner's policy from the thresholds in `bayesian_config.json`.

        Raises:
            ConfigError: if a name is unknown or a value is out of range.
        """
        known = {score.threshold for score in SCORES.values()}
        if unknown := sorted(set(thresholds) - known):
            raise ConfigError(f"got unknown policy thresholds {unknown}, expected some of {sorted(known)}")
        return cls(**thresholds)  # type: ignore[arg-type]  # the names were checked above


def strictest(policies: Sequence[Policy]) -> Policy | None:
    """Return the policy that withholds an answer if any of several policies would; None for an empty sequence.

    >>> strictest([Policy(min_confidence=0.6), Policy(min_confidence=0.7, max_mutual_information=0.1)]).limits()
    {'confidence': 0.7, 'mutual_information': 0.1}
    """
    found: dict[str, float] = {}
    for policy in policies:
        for name, value in policy.limits().items():
            score = SCORES[name]
            harder = max if score.high_is_certain else min
            found[score.threshold] = harder(value, found.get(score.threshold, value))
    return Policy.from_mapping(found) if found else None


@dataclass(frozen=True, slots=True)
class AbstainReason:
    """One threshold that an answer failed.

    Attributes:
        name: name of the reason, such as low_confidence or high_predictive_entropy.
        value: the prediction's score.
        threshold: the policy's threshold.
    """

    name: str
    value: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision to give or withhold an answer, with all reasons for withholding it."""

    abstained: bool
    reasons: tuple[AbstainReason, ...]


def decide(prediction: Prediction, policy: Policy | None) -> Decision:
    """Return whether a prediction fails any threshold of a policy; a value equal to its threshold does not fail."""
    values, limits = prediction.scores(), policy.limits() if policy is not None else {}
    reasons = tuple(
        AbstainReason(SCORES[name].reason, values[name], limit)
        for name, limit in limits.items()
        if SCORES[name].fails(values[name], limit)
    )
    return Decision(bool(reasons), reasons)
