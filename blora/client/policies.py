"""When an application does not act on an answer, beside what the server already withholds.

>>> policy = AbstainBelow(0.8) | AbstainAbove(mutual_information=0.1)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from blora.client.answers import AbstainReason, Prediction

__all__ = ["AbstainAbove", "AbstainBelow", "AbstainPolicy"]


class AbstainPolicy(ABC):
    """A condition under which an answer is not to be used; `a | b` holds where either does, `a & b` where both do."""

    @abstractmethod
    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        """Why not to use the answer; empty where nothing speaks against it."""

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction without its answer where the condition holds, the reasons added to the server's."""
        reasons = self.reasons(prediction)
        if not reasons:
            return prediction
        return prediction.model_copy(
            update={"answer": None, "abstained": True, "abstain_reasons": [*prediction.abstain_reasons, *reasons]}
        )

    def __or__(self, other: "AbstainPolicy") -> "AbstainPolicy":
        return _Either(self, other)

    def __and__(self, other: "AbstainPolicy") -> "AbstainPolicy":
        return _Both(self, other)


@dataclass(frozen=True, slots=True)
class AbstainBelow(AbstainPolicy):
    """The leader's probability is lower than this.

    Attributes:
        confidence: in [0, 1].
    """

    confidence: float

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"got AbstainBelow({self.confidence}), expected a probability from 0 to 1")

    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        """See AbstainPolicy."""
        if prediction.confidence >= self.confidence:
            return ()
        return (AbstainReason(reason="low_confidence", value=prediction.confidence, threshold=self.confidence),)


@dataclass(frozen=True, slots=True, kw_only=True)
class AbstainAbove(AbstainPolicy):
    """Any of these uncertainties is higher than given, in nats."""

    predictive_entropy: float | None = None
    expected_entropy: float | None = None
    mutual_information: float | None = None

    def __post_init__(self) -> None:
        if not self._thresholds() or not all(value >= 0 for value in self._thresholds().values()):
            raise ValueError(f"got {self}, expected at least one threshold, each 0 or more")

    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        """See AbstainPolicy."""
        return tuple(
            AbstainReason(reason=f"high_{name}", value=getattr(prediction, name), threshold=threshold)
            for name, threshold in self._thresholds().items()
            if getattr(prediction, name) > threshold
        )

    def _thresholds(self) -> dict[str, float]:
        names = ("predictive_entropy", "expected_entropy", "mutual_information")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class _Either(AbstainPolicy):
    one: AbstainPolicy
    other: AbstainPolicy

    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        return self.one.reasons(prediction) + self.other.reasons(prediction)


@dataclass(frozen=True, slots=True)
class _Both(AbstainPolicy):
    one: AbstainPolicy
    other: AbstainPolicy

    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        found = self.one.reasons(prediction), self.other.reasons(prediction)
        return found[0] + found[1] if all(found) else ()
