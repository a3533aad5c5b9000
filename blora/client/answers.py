"""Models of a server's answers, with their uncertainty, and of its errors.

The server builds its answers from these classes, and clients parse answers with them. Unknown fields, as from a newer
server, are ignored.
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
    """Base class of every part of an answer."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class AdapterRef(Answer):
    """The adapter that answered, with digests of its contents."""

    name: str
    digest: str = Field(description="SHA-256 of its contents: weights, posterior and settings.")
    calibration_digest: str = Field(
        description="SHA-256 of the calibration in force and the policy, which together decide whether to abstain. "
        "Changes when either does, whereas `digest` does not.",
    )

    @property
    def pin(self) -> str:
        """The adapter's name for a request that must get exactly this adapter, under the same calibration."""
        return f"{self.name}@{self.digest}+{self.calibration_digest}"


class ChoiceProbability(Answer):
    """A choice, with its probability, and the standard deviation of that over the draws, before guesses."""

    choice: str
    probability: float = Field(ge=0, le=1)
    std: float = Field(ge=0)


class AbstainReason(Answer):
    """A threshold that the prediction did not meet."""

    reason: str
    value: float
    threshold: float


_THRESHOLDS: dict[str, Any] = {score.threshold: (float | None, None) for score in SCORES.values()}
_Thresholds: Any = create_model("_Thresholds", __base__=Answer, **_THRESHOLDS)


class PolicyInForce(_Thresholds):  # type: ignore[misc]  # a type checker cannot read the table
    """The policy that was applied, and its source; only thresholds that are set appear."""

    target_risk: float | None = Field(
        default=None, description="Proved upper bound of P(wrong | answered) under the threshold."
    )
    source: Literal["request", "adapter"]


class Usage(Answer):
    """Numbers of tokens: of the prompt, of these from the cache of prefixes, and of the choices that were scored."""

    prompt_tokens: int
    cached_tokens: int = 0
    scored_tokens: int


class Timing(Answer):
    """Milliseconds in the queue, and in the forward pass that computed this input."""

    queue_ms: float
    compute_ms: float


class _Leader(Answer):
    """The fields of a prediction before its scores."""

    id: str = Field(description="Identifier for POST /v1/feedback.")
    created: int = Field(description="Unix time in seconds.")
    model: str = Field(description="Name of the base model.")
    adapter: AdapterRef = Field(description="The adapter that answered.")
    answer: str | None = Field(description="The leading choice, or null if the server abstains.")
    top_choice: str = Field(description="The leading choice, also if the server abstains.")
    probabilities: list[ChoiceProbability] = Field(description="In the order of the choices.")


def _reported(score: Score) -> tuple[Any, Any]:
    """Return the type and the default of a score's field in an answer."""
    if score.of is not None:
        return float, ...
    return float | None, Field(
        default=None, description=f"{score.meaning} Absent for an adapter without a familiarity."
    )


_SCORES: dict[str, Any] = {score.name: _reported(score) for score in TABLE}
_Scores: Any = create_model("_Scores", __base__=_Leader, **_SCORES)


class Prediction(_Scores):  # type: ignore[misc]  # a type checker cannot read the table
    """A prediction with its answer, or `answer: null` and the reasons. Entropies and information are in nats."""

    prediction_set: list[str] | None = Field(
        description="Set of choices that contains the right one with the calibrated probability, and always the "
        "leading choice; null without a calibration, or if it does not cover this number of draws, seed, scoring or "
        "set of choices."
    )
    abstained: bool = Field(description="Whether the policy withholds the answer.")
    abstain_reasons: list[AbstainReason] = Field(description="Thresholds that the answer did not meet.")
    policy: PolicyInForce | None = Field(description="The policy that was applied; null for none.")
    n_samples: int = Field(description="Posterior draws behind this answer.")
    usage: Usage
    timing: Timing
    warnings: list[str] = Field(
        default=[],
        description="Reasons for caution. not_calibrated: the adapter's calibration does not hold for the way it is "
        "served, so nothing is proved about its threshold. without_head: the adapter's head had no part in "
        "the answer, because of other choices than its own or of scoring by letters; the language model scored the "
        "choices, and familiarity says nothing about such an answer. "
        "shadowed_choice: one choice is the beginning of another, and the adapter scores choices without an end token, "
        "so that the longer one can never win: rename one of them, or train the adapter again. mostly_guesses: the "
        "question is farther from the training rows than every row that the adapter was validated on, so that nearly "
        "all of the probability is spread evenly over the choices. other_instructions, other_descriptions: a typed "
        "question has those of the adapter's own question in other words, which the adapter does not read, so that "
        "nothing is proved about the answer. other_input: the input of typed questions has items of others than users, "
        "which begin with their roles, as no row of the calibration did, so that nothing is proved about the answer. "
        "unchecked_wording: a typed question has instructions or descriptions, and "
        "the adapter, which does not read them, has none of its own to compare them with. Newer servers may have more. "
        "Absent without warnings.",
    )
    feedback_requested: bool | None = Field(
        default=None,
        description="Whether to report the outcome to /v1/feedback, chosen at random; only from a server that asks for "
        "a share of all outcomes.",
    )
    samples: list[list[float]] | None = Field(
        default=None, description="Probabilities by draw and choice, before guesses; only with `return_samples`."
    )

    def __repr__(self) -> str:
        return prediction_line(self)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return html_of(self)


class Outcome(Answer):
    """Response to a reported outcome."""

    correct: bool = Field(description="Whether the leading choice was the label.")


class ErrorDetail(Answer):
    """Description of an error and its remedy."""

    message: str = Field(description="What is wrong, what was expected, and what to do; never the text of the request.")
    type: str = Field(description="Group of related codes, as in OpenAI's API.")
    param: str | None = Field(description="Path of the wrong field, as in questions[2].choices, if there is one.")
    code: str = Field(description="One of the codes of the table of errors.")


class ErrorBody(Answer):
    """Body of every error response."""

    error: ErrorDetail
