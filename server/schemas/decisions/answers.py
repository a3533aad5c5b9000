"""Answers of POST /v1/decisions, in OpenAI's shape, with fields of our own beside theirs.

An answer's class has two bases: its shape in the protocol, whose fields come first, and the fields of our own.
"""

from typing import Any, Literal

from pydantic import Field, create_model

from blora.client.answers import AbstainReason, AdapterRef, PolicyInForce
from blora.scores import TABLE
from blora.server.schemas.responses import Response

__all__ = [
    "ChoiceAnswer",
    "DecisionAnswer",
    "DecisionsResponse",
    "InputTokens",
    "LevelProbability",
    "OutputTokens",
    "Own",
    "PredicateAnswer",
    "RefusalAnswer",
    "ScoreAnswer",
    "Scored",
    "Usage",
    "ValueProbability",
]


class Own(Response):
    """Fields of our own that every answer has."""

    id: str = Field(description="Ours: identifier for POST /v1/feedback.")
    abstained: bool = Field(description="Ours: whether the policy withholds the answer.")
    abstain_reasons: list[AbstainReason] = Field(description="Ours: thresholds that the answer did not meet.")
    calibrated: bool = Field(description="Ours: whether the adapter's calibration covers the question.")
    uncalibrated_because: str | None = Field(description="Ours: why it does not; null if it does.")
    policy: PolicyInForce | None = Field(description="Ours: the policy that was applied.")
    adapter: AdapterRef = Field(description="Ours: the adapter that answered.")
    n_samples: int = Field(description="Ours: posterior draws behind the answer.")
    feedback_requested: bool | None = Field(
        default=None, description="Ours: whether the outcome is asked for; absent unless the server samples."
    )
    warnings: list[str] = Field(default=[], description="Ours: as in answers of /v1/predict; absent without any.")


_SCORES: dict[str, Any] = {
    score.name: (float | None, Field(default=None, description=f"Ours: {score.meaning}"))
    for score in TABLE
    if score.name != "confidence"  # which means something else in these protocols
}
_OwnScores: Any = create_model("_OwnScores", __base__=Own, **_SCORES)


class Scored(_OwnScores):  # type: ignore[misc]  # a type checker cannot read the table
    """Fields of our own that every answer with probabilities has."""

    prediction_set: list[str | bool] | None = Field(
        description="Ours: set of values that contains the right one with the calibrated probability; null without a "
        "calibration that covers the question."
    )


class _Predicate(Response):
    type: Literal["predicate"]
    name: str | None
    probability: float = Field(ge=0, le=1)
    std: float = Field(ge=0, description="Ours: standard deviation of the probability over the draws.")


class PredicateAnswer(Scored, _Predicate):
    """Probability that a predicate is true."""


class ValueProbability(Response):
    """Probability of one choice."""

    value: str | bool
    probability: float = Field(ge=0, le=1)
    std: float = Field(ge=0, description="Ours: standard deviation of the probability over the draws.")


class _Choice(Response):
    type: Literal["choice"]
    name: str | None
    choice: str | bool
    probabilities: list[ValueProbability]
    confidence: float = Field(
        ge=0, le=1, description="(p - 1/K) / (1 - 1/K) for the largest p of K probabilities; not that probability."
    )


class ChoiceAnswer(Scored, _Choice):
    """The most probable choice, and the probabilities of all in the question's order."""


class LevelProbability(Response):
    """Probability of one level."""

    value: int
    label: str
    probability: float = Field(ge=0, le=1)
    std: float = Field(ge=0, description="Ours: standard deviation of the probability over the draws.")


class _Score(Response):
    type: Literal["score"]
    name: str | None
    score: float
    score_std: float = Field(ge=0, description="Ours: standard deviation of the score over the draws.")
    probabilities: list[LevelProbability]
    confidence: float = Field(
        ge=0,
        le=1,
        description="One minus the expected distance from the most probable level, over that of equal probabilities.",
    )


class ScoreAnswer(Scored, _Score):
    """Expected level, counted from 0, and the probabilities of all levels."""


class _Refusal(Response):
    type: Literal["refusal"]
    name: str | None


class RefusalAnswer(Own, _Refusal):
    """An abstention, where the request or the server asks for refusals."""


DecisionAnswer = PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer


class InputTokens(Response):
    """Parts of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokens(Response):
    """Parts of the output's tokens."""

    reasoning_tokens: int


class Usage(Response):
    """Numbers of tokens: those of the different texts that were read, and no output."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class DecisionsResponse(Response):
    """Answers in the order of the questions."""

    model: str
    answers: list[DecisionAnswer]
    usage: Usage
