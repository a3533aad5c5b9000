"""What the server sends back, beside the answers of `blora.client.answers`, which clients read with those classes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from blora.client.answers import ErrorBody, ErrorDetail, Prediction
from blora.server.errors import ServerError

__all__ = [
    "BatchResponse",
    "Info",
    "Limits",
    "ModelCard",
    "ModelDescription",
    "ModelList",
    "Response",
    "Status",
    "error_body",
]


class Response(BaseModel):
    """Base of everything that the server sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BatchResponse(Response):
    """The answers in the order of the inputs; a bad input has an error in its place."""

    predictions: list[Prediction | ErrorBody]


class ModelCard(Response):
    """One entry of the model list, in OpenAI's shape; adapters carry their digests."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["blora"] = "blora"
    root: str
    parent: str | None
    digest: str | None
    calibration_digest: str | None = Field(
        default=None, description="SHA-256 of an adapter's calibration in force and its policy; null of a base model."
    )


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
    runs_whole_because: str | None = Field(
        description="Why every layer is computed for every draw, which costs several times as much; null where layers "
        "that draws share run once a question."
    )


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


def error_body(error: ServerError) -> ErrorBody:
    """The error as the client sees it."""
    detail = ErrorDetail(message=str(error), type=error.type, param=error.param, code=error.code)
    return ErrorBody(error=detail)
