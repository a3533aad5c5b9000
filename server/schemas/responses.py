"""What the server sends back."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from server.errors import ServerError

__all__ = [
    "AbstainReason",
    "AdapterRef",
    "BatchResponse",
    "ChoiceProbability",
    "ErrorBody",
    "ErrorDetail",
    "Info",
    "Limits",
    "ModelCard",
    "ModelDescription",
    "ModelList",
    "PolicyInForce",
    "PredictResponse",
    "Status",
    "Timing",
    "Usage",
]


class Response(BaseModel):
    """Base of everything that the server sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AdapterRef(Response):
    """Which adapter answered, down to its contents."""

    name: str
    digest: str


class ChoiceProbability(Response):
    """One choice: mean and standard deviation of its probability over the draws."""

    choice: str
    probability: float = Field(ge=0, le=1)
    std: float = Field(ge=0)


class AbstainReason(Response):
    """One threshold that the prediction did not meet."""

    reason: str
    value: float
    threshold: float


class PolicyInForce(Response):
    """The thresholds that were applied, and whose they are; only those that are set appear."""

    min_confidence: float | None = None
    max_predictive_entropy: float | None = None
    max_mutual_information: float | None = None
    target_risk: float | None = Field(
        default=None, description="P(wrong | answered) that the threshold was proved not to exceed."
    )
    source: Literal["request", "adapter"]


class Usage(Response):
    """Tokens read and scored."""

    prompt_tokens: int
    scored_tokens: int


class Timing(Response):
    """Milliseconds spent waiting, and in the forward pass that held this input."""

    queue_ms: float
    compute_ms: float


class PredictResponse(Response):
    """The answer, or `answer: null` and the reasons. Entropies and information are in nats."""

    id: str
    created: int = Field(description="Unix time in seconds.")
    model: str
    adapter: AdapterRef
    answer: str | None = Field(description="The leader, or null where the server abstains.")
    top_choice: str
    probabilities: list[ChoiceProbability] = Field(description="In the order of the choices.")
    confidence: float
    predictive_entropy: float
    expected_entropy: float
    mutual_information: float
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
    samples: list[list[float]] | None = Field(
        default=None, description="(draws, choices) probabilities; only with `return_samples`."
    )


class ErrorDetail(Response):
    """What is wrong: got ..., expected ..., do ..."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Response):
    """The one shape of every error."""

    error: ErrorDetail

    @classmethod
    def of(cls, error: ServerError) -> "ErrorBody":
        """The error as the client sees it."""
        detail = ErrorDetail(message=str(error), type=error.type, param=error.param, code=error.code)
        return cls(error=detail)


class BatchResponse(Response):
    """The answers in the order of the inputs; a bad input has an error in its place."""

    predictions: list[PredictResponse | ErrorBody]


class ModelCard(Response):
    """One entry of the model list, in OpenAI's shape; adapters carry their digest."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["blora"] = "blora"
    root: str
    parent: str | None
    digest: str | None


class ModelList(Response):
    """The base model, and every adapter on it."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ModelDescription(Response):
    """The base model that is loaded."""

    name: str
    id: str
    revision: str | None
    fingerprint: str
    device: str
    dtype: str
    max_length: int


class Limits(Response):
    """The limits that requests are held to; see the settings of the same names."""

    n_samples_cap: int
    max_batch_tokens: int
    max_queue_tokens: int
    max_queue_requests: int
    max_inputs: int
    max_body_bytes: int
    max_prompt_tokens: int
    timeout_s: float


class Info(Response):
    """What is running."""

    version: str
    revision: str
    model: ModelDescription | None = Field(description="null until the model is loaded.")
    limits: Limits


class Status(Response):
    """The server is well."""

    status: Literal["ok"] = "ok"
