"""Schemas of responses other than predictions, whose classes are in `blora.client.answers`."""

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
    "ModelMetadata",
    "Response",
    "Status",
    "error_body",
]


class Response(BaseModel):
    """Base of all response schemas."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BatchResponse(Response):
    """Answers in the order of the inputs, with an error in place of each invalid input."""

    predictions: list[Prediction | ErrorBody]


class ModelCard(Response):
    """Entry of the model list in OpenAI's format, with the digests of adapters."""

    id: str = Field(description="Name of the adapter, as requests give it, or of the base model.")
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time of the adapter's loading or of the server's start, in seconds.")
    owned_by: Literal["blora"] = "blora"
    root: str = Field(description="Id of the base model.")
    parent: str | None = Field(description="Name of an adapter's base model; null for the base model.")
    digest: str | None = Field(description="SHA-256 of the adapter's contents, or the base model's fingerprint.")
    calibration_digest: str | None = Field(
        default=None, description="SHA-256 of an adapter's calibration in force and its policy; null for a base model."
    )


class ModelMetadata(Response):
    """Entry of the model list in TypeSafe's format: an adapter."""

    name: str
    description: str
    release_date: str = Field(description="Day of loading in UTC, as YYYY-MM-DD.")


class ModelList(Response):
    """List of the base model and its adapters in OpenAI's format, and of the adapters in TypeSafe's."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    models: list[ModelMetadata]


class ModelDescription(Response):
    """Description of the loaded base model."""

    name: str = Field(description="Short name, as in answers.")
    id: str = Field(description="Hub id, path or file name.")
    revision: str | None = Field(description="Revision of the hub id, if there is one.")
    fingerprint: str = Field(description="Fingerprint of its weights, by which an adapter recognises it.")
    companion: str | None = Field(
        description="Hub id, path or file name of the encoder that adapters may read beside it; null without one."
    )
    device: str = Field(description="Device that it runs on.")
    dtype: str = Field(description="Precision that it runs in.")
    max_length: int = Field(description="The most tokens of a row, which is a prompt with choices.")
    runs_whole_because: str | None = Field(
        description="Reason why every layer runs for every draw, at several times the cost; null if layers that draws "
        "share run once per question."
    )


class Limits(Response):
    """Limits on requests, under the names of the settings."""

    n_samples_cap: int
    max_batch_tokens: int
    max_queue_tokens: int
    max_queue_requests: int
    max_inputs: int
    max_body_bytes: int
    max_prompt_tokens: int
    timeout_s: float


class Info(Response):
    """Description of the running server."""

    version: str = Field(description="Version of blora.")
    revision: str = Field(description="Commit that the image or the checkout is of.")
    model: ModelDescription | None = Field(description="null until the model is loaded.")
    limits: Limits


class Status(Response):
    """Status of a successful probe."""

    status: Literal["ok"] = "ok"


def error_body(error: ServerError) -> ErrorBody:
    """Return the body of an error response."""
    detail = ErrorDetail(message=str(error), type=error.type, param=error.param, code=error.code)
    return ErrorBody(error=detail)
