"""The policy that decides whether an answer may go out, and says why when it may not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from blora.decision.uncertainty import Prediction
from blora.errors import ConfigError

__all__ = ["AbstainReason", "Decision", "Policy", "decide", "strictest"]

# Probabilities come from float32; a value this close to its threshold is at the threshold, which is not abstaining.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Thresholds; None is no threshold. Every threshold that is set must hold for an answer to go out.

    Attributes:
        min_confidence: in [0, 1].
        max_predictive_entropy: nats, >= 0.
        max_mutual_information: nats, >= 0.
        source: who set it.
    """

    min_confidence: float | None = None
    max_predictive_entropy: float | None = None
    max_mutual_information: float | None = None
    source: Literal["request", "adapter"] = "adapter"

    def __post_init__(self) -> None:
        set_values = {name: value for name, value in self.thresholds().items() if value is not None}
        if not set_values:
            raise ConfigError(
                f"got a policy without thresholds, expected at least one of {', '.join(self.thresholds())}"
            )
        for name, value in set_values.items():
            upper = 1.0 if name == "min_confidence" else float("inf")
            if not 0 <= value <= upper or value == float("inf"):
                raise ConfigError(f"got policy {name} = {value}, expected a number from 0 to {upper}")

    def thresholds(self) -> dict[str, float | None]:
        """The thresholds by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "source"}

    @classmethod
    def from_mapping(cls, thresholds: Mapping[str, float]) -> "Policy":
        """The adapter owner's policy, from `bayesian_config.json`.

        Raises:
            ConfigError: if a name is unknown or a value out of range.
        """
        known = {f.name for f in fields(cls)} - {"source"}
        if unknown := sorted(set(thresholds) - known):
            raise ConfigError(f"got unknown policy thresholds {unknown}, expected some of {sorted(known)}")
        return cls(**thresholds)  # type: ignore[arg-type]  # the names were checked above


def strictest(policies: Sequence[Policy]) -> Policy | None:
    """Return the policy that withholds whatever one of several does; None for none.

    >>> strictest([Policy(min_confidence=0.6), Policy(min_confidence=0.7, max_mutual_information=0.1)]).thresholds()
    {'min_confidence': 0.7, 'max_predictive_entropy': None, 'max_mutual_information': 0.1}
    """
    found: dict[str, float] = {}
    for policy in policies:
        for name, value in policy.thresholds().items():
            if value is not None:
                harder = max if name.startswith("min_") else min
                found[name] = harder(value, found.get(name, value))
    return Policy.from_mapping(found) if found else None


@dataclass(frozen=True, slots=True)
class AbstainReason:
    """One threshold that an answer failed.

    Attributes:
        name: low_confidence, high_predictive_entropy or high_mutual_information.
        value: what the prediction had.
        threshold: what the policy asked for.
    """

    name: str
    value: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to withhold the answer, and every reason to."""

    abstained: bool
    reasons: tuple[AbstainReason, ...]


def decide(prediction: Prediction, policy: Policy | None) -> Decision:
    """Abstains where any threshold of the policy fails; exactly at a threshold is answering."""
    reasons = []
    if policy is not None:
        minimum = policy.min_confidence
        if minimum is not None and prediction.confidence < minimum - TOLERANCE:
            reasons.append(AbstainReason("low_confidence", prediction.confidence, minimum))
        for quantity in ("predictive_entropy", "mutual_information"):
            value, maximum = getattr(prediction, quantity), getattr(policy, f"max_{quantity}")
            if maximum is not None and value > maximum + TOLERANCE:
                reasons.append(AbstainReason(f"high_{quantity}", value, maximum))
    return Decision(bool(reasons), tuple(reasons))
