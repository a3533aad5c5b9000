"""Client-side policies, by which an application withholds answers beyond the server's own abstention.

>>> policy = AbstainBelow(0.8) | AbstainAbove(mutual_information=0.1)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass
from math import isfinite
from typing import Any, ClassVar

from blora.client.answers import AbstainReason, Prediction
from blora.client.errors import ClientError
from blora.scores import TABLE, Score

__all__ = ["AbstainAbove", "AbstainBelow", "AbstainPolicy"]

# Warning of an answer in which the adapter's head has no part.
WITHOUT_HEAD = "without_head"


class AbstainPolicy(ABC):
    """A condition for withholding an answer; `a | b` holds if either condition does, `a & b` if both do."""

    @abstractmethod
    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        """Return the reasons to withhold the answer; empty if the condition does not hold."""

    def apply(self, prediction: Prediction) -> Prediction:
        """Return the prediction, without its answer and with the reasons added if the condition holds."""
        reasons = tuple(self.reasons(prediction))  # fails for a policy that returns None
        if not reasons:
            return prediction
        withheld: Prediction = prediction.model_copy(
            update={"answer": None, "abstained": True, "abstain_reasons": [*prediction.abstain_reasons, *reasons]}
        )
        return withheld

    def __or__(self, other: "AbstainPolicy") -> "AbstainPolicy":
        return _Either(self, other) if isinstance(other, AbstainPolicy) else NotImplemented

    def __and__(self, other: "AbstainPolicy") -> "AbstainPolicy":
        return _Both(self, other) if isinstance(other, AbstainPolicy) else NotImplemented

    def __bool__(self) -> bool:
        """Raise TypeError, because `a or b` would be `a` alone."""
        raise TypeError("got a policy as a truth value, expected a combination by | or &: write a | b or a & b")


class _Beyond(AbstainPolicy):
    """Base of conditions that hold if any score is less certain than its threshold, a field of the score's name."""

    _scores: ClassVar[Sequence[Score]]
    _expected: ClassVar[str]

    def __post_init__(self) -> None:
        limits = list(self._limits())
        if not limits or not all(_is_limit(limit) and 0 <= limit <= score.greatest for score, limit in limits):
            raise ValueError(f"got {self}, expected {self._expected}")

    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        """Return the reasons, as described in AbstainPolicy."""
        return tuple(
            AbstainReason(reason=score.reason, value=value, threshold=limit)
            for score, limit in self._limits()
            if score.fails(value := _value(prediction, score), limit)
        )

    def _limits(self) -> Iterator[tuple[Score, float]]:
        for score in self._scores:
            if (limit := getattr(self, score.name)) is not None:
                yield score, limit


def _is_limit(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _value(prediction: Prediction, score: Score) -> float:
    """Return the value of a score.

    Raises:
        ClientError: if the answer lacks it, or if it says nothing about the answer: the score of the question for an
            answer without the head, or one that goes by the differences of draws for draws that do not differ.
    """
    if score.of is None and WITHOUT_HEAD in prediction.warnings:
        raise ClientError(
            f"got an answer without the adapter's head, about which the {score.name} says nothing, expected one of the "
            f"head to apply a threshold on it: ask with the adapter's choices and scoring, or leave the threshold out"
        )
    if score.fewest_draws > 1 and not _draws_differ(prediction):
        raise ClientError(
            f"got an answer whose draws do not differ, expected {score.fewest_draws} different ones or more to apply a "
            f"threshold on {score.name}: ask for more draws of an adapter with a posterior, or leave the threshold out"
        )
    value: float | None = getattr(prediction, score.name)
    if value is None:
        raise ClientError(
            f"got an answer without {score.name}, expected one with it to apply a threshold: the adapter has no "
            f"{score.name}, which comes with a decision head; leave the threshold out"
        )
    return value


def _draws_differ(prediction: Prediction) -> bool:
    """Return whether any probability spreads over the draws, as all but a share of exactly 1 do."""
    return prediction.confidence == 1 or any(choice.std > 0 for choice in prediction.probabilities)


def _with_field_for_each(scores: Sequence[Score]) -> Any:
    """Return the base class of a condition on scores; the first score's threshold may be a positional argument."""
    fields = [(score.name, float | None, field(default=None, kw_only=place > 0)) for place, score in enumerate(scores)]
    return make_dataclass("_Limits", fields, bases=(_Beyond,), frozen=True, slots=True)


_SHARES = tuple(score for score in TABLE if score.high_is_certain)
_UNCERTAINTIES = tuple(score for score in TABLE if not score.high_is_certain)


@dataclass(frozen=True, slots=True)
class AbstainBelow(_with_field_for_each(_SHARES)):  # type: ignore[misc]  # a type checker cannot read the table
    """Condition that any given share, such as the confidence, is below its limit: `AbstainBelow(confidence=0.8)`.

    The confidence, which is the leader's probability, needs no name: `AbstainBelow(0.8)`.
    """

    _scores: ClassVar[Sequence[Score]] = _SHARES
    _expected: ClassVar[str] = "a probability from 0 to 1 for at least one score"


@dataclass(frozen=True, slots=True, kw_only=True)
class AbstainAbove(_with_field_for_each(_UNCERTAINTIES)):  # type: ignore[misc]
    """Condition that any given uncertainty is above its limit, in nats: `AbstainAbove(mutual_information=0.1)`."""

    _scores: ClassVar[Sequence[Score]] = _UNCERTAINTIES
    _expected: ClassVar[str] = "at least one threshold, each 0 or more"


@dataclass(frozen=True, slots=True)
class _Either(AbstainPolicy):
    one: AbstainPolicy
    other: AbstainPolicy

    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        return (*self.one.reasons(prediction), *self.other.reasons(prediction))


@dataclass(frozen=True, slots=True)
class _Both(AbstainPolicy):
    one: AbstainPolicy
    other: AbstainPolicy

    def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
        found = self.one.reasons(prediction), self.other.reasons(prediction)
        return (*found[0], *found[1]) if all(found) else ()
