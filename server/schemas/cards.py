"""An adapter's card: how it was made, how good it was, and what was proved about it."""

from typing import Any, Literal

from pydantic import Field

from blora.client.answers import PolicyInForce
from blora.config import PosteriorConfig, PromptConfig, SamplingConfig
from blora.decision.calibration import Calibration
from blora.server.schemas.responses import Response

__all__ = ["AdapterCard", "AdapterList"]


class AdapterCard(Response):
    """One adapter that is served."""

    name: str
    digest: str = Field(description="SHA-256 of its contents: weights, posterior and settings.")
    calibration_digest: str = Field(
        description="SHA-256 of the calibration in force and the policy; `digest` covers neither."
    )
    created: int = Field(description="Unix time of loading, in seconds.")
    base_model: str
    target_modules: list[str]
    posterior: PosteriorConfig
    prompt: PromptConfig
    sampling: SamplingConfig
    training: dict[str, Any] = Field(
        description="As recorded when it was trained: settings, data, and the metrics on its validation rows."
    )
    policy: PolicyInForce | None = Field(description="Decides on requests that bring no policy.")
    calibration: Calibration | None = Field(
        description="What was proved on rows that it had not seen: the levels by target_risk, each with probability "
        "1 - delta over the draw of the rows, where delta is the sum over all asks of these rows; quantiles of "
        "prediction sets, reliability bins and the risk-coverage curve; null where it is not calibrated."
    )


class AdapterList(Response):
    """The cards of every adapter."""

    object: Literal["list"] = "list"
    data: list[AdapterCard]
