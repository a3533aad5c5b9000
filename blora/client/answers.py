"""Answers of a server to a question, with their uncertainty, and the one shape of every error.

The server builds its answers from these classes, clients read them. A field that a newer server adds is ignored.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from blora.client.shown import html_of, prediction_line
from blora.scores import SCORES, TABLE, Score

__all__ = [
    "AbstainReason",
    "AdapterRef",
    "Answer",
    "ChoiceProbability",
    "ErrorBody",
    "ErrorDetail",
    "Outcome",
    "PolicyInForce",
    "Prediction",
    "Timing",
    "Usage",
]


class Answer(BaseModel):
    """Base of every part of an answer."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class AdapterRef(Answer):
    """Adapter that answered, with digests of its contents."""

    name: str
    digest: str = Field(description="SHA-256 of its contents: weights, posterior and settings.")
    calibration_digest: str | None = Field(
        default=None,
        description="SHA-256 of what decides about its answers: the calibration in force and the policy. It changes "
        "when either does, whereas `digest` does not. Absent from servers that do not know it.",
    )

    @property
    def pin(self) -> str:
        """This adapter as a request names it to be answered by exactly the same one, under the same calibration."""
        calibration = "" if self.calibration_digest is None else f"+{self.calibration_digest}"
        return f"{self.name}@{self.digest}{calibration}"


class ChoiceProbability(Answer):
    """One choice: mean and standard deviation of its probability over the draws."""

    choice: str
    probability: float = Field(ge=0, le=1)
    std: float = Field(ge=0)


class AbstainReason(Answer):
    """One threshold that the prediction did not meet."""

    reason: str
    value: float
    threshold: float


_THRESHOLDS: dict[str, Any] = {score.threshold: (float | None, None) for score in SCORES.values()}
_Thresholds: Any = create_model("_Thresholds", __base__=Answer, **_THRESHOLDS)


class PolicyInForce(_Thresholds):  # type: ignore[misc]  # a type checker cannot read the table
    """The thresholds that were applied, and whose they are; only those that are set appear."""

    target_risk: float | None = Field(
        default=None, description="P(wrong | answered) that the threshold was proved not to exceed."
    )
    source: Literal["request", "adapter"]


class Usage(Answer):
    """Tokens read and scored."""

    prompt_tokens: int
    scored_tokens: int


class Timing(Answer):
    """Milliseconds spent waiting, and in the forward pass that held this input."""

    queue_ms: float
    compute_ms: float


class _Leader(Answer):
    """The fields of a prediction before its scores."""

    id: str
    created: int = Field(description="Unix time in seconds.")
    model: str
    adapter: AdapterRef
    answer: str | None = Field(description="The leader, or null where the server abstains.")
    top_choice: str
    probabilities: list[ChoiceProbability] = Field(description="In the order of the choices.")


def _reported(score: Score) -> tuple[Any, Any]:
    """Return the type and the default of a score in an answer."""
    if score.always_reported:
        return float, ...
    return float | None, Field(default=None, description=f"{score.meaning} Absent from servers that do not know it.")


_SCORES: dict[str, Any] = {score.name: _reported(score) for score in TABLE}
_Scores: Any = create_model("_Scores", __base__=_Leader, **_SCORES)


class Prediction(_Scores):  # type: ignore[misc]  # a type checker cannot read the table
    """The answer, or `answer: null` and the reasons. Entropies and information are in nats."""

    prediction_set: list[str] | None = Field(
        description="Choices that hold the right one with the probability that the adapter was calibrated for, at "
        "least the leader; null where it was not, or not for this number of draws, seed, scoring or set of choices."
    )
    abstained: bool
    abstain_reasons: list[AbstainReason]
    policy: PolicyInForce | None
    n_samples: int = Field(description="Posterior draws behind this answer.")
    usage: Usage
    timing: Timing
    warnings: list[Literal["not_calibrated", "shadowed_choice"]] = Field(
        default=[],
        description="Reasons for caution. not_calibrated: the adapter's calibration does not hold for it as it is "
        "served, so that nothing is proved of its threshold. shadowed_choice: a choice begins with another one, and "
        "the adapter scores choices without an end, so that the longer one can never win: rename one of them, or train "
        "the adapter again. Absent where there are none.",
    )
    feedback_requested: bool | None = Field(
        default=None,
        description="Whether the outcome should be reported to /v1/feedback, drawn at random; only from a server that "
        "asks for a share of all outcomes.",
    )
    samples: list[list[float]] | None = Field(
        default=None, description="(draws, choices) probabilities; only with `return_samples`."
    )

    def __repr__(self) -> str:
        return prediction_line(self)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return html_of(self)


class Outcome(Answer):
    """Result of reporting an outcome."""

    correct: bool = Field(description="Whether the leading choice was the label.")


class ErrorDetail(Answer):
    """Description of an error: what is wrong, and what to do about it."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Answer):
    """The one shape of every error."""

    error: ErrorDetail
