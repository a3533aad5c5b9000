"""Schema of an adapter's card: training record, validation metrics and calibration."""

from typing import Any, Literal

from pydantic import Field

from blora.client.answers import PolicyInForce
from blora.config import FamiliarityConfig, PosteriorConfig, PromptConfig, QuestionConfig, SamplingConfig
from blora.decision.calibration import Calibration
from blora.server.schemas.responses import Response

__all__ = ["AdapterCard", "AdapterList"]


class AdapterCard(Response):
    """Card of one served adapter."""

    name: str = Field(description="Name that requests give.")
    digest: str = Field(description="SHA-256 of its contents: weights, posterior and settings.")
    calibration_digest: str = Field(
        description="SHA-256 of the calibration in force and the policy; `digest` covers neither."
    )
    created: int = Field(description="Unix time of loading, in seconds.")
    base_model: str = Field(description="Base model that it was trained on.")
    companion: str | None = Field(description="Encoder that it reads beside the base model; null without one.")
    target_modules: list[str] = Field(description="Modules that have a LoRA; empty for a head alone.")
    posterior: PosteriorConfig = Field(description="Kind and size of the posterior over the LoRA.")
    prompt: PromptConfig = Field(description="How a request becomes a prompt, and how its choices are read.")
    sampling: SamplingConfig = Field(description="Draws and recalibration of requests that set none.")
    question: QuestionConfig | None = Field(
        description="The question that the adapter answers in /v1/decisions; null if it has no name."
    )
    familiarity: FamiliarityConfig | None = Field(
        description="Sizes of the distance behind the familiarity; null if answers have no familiarity, as those of an "
        "adapter without a decision head."
    )
    least_familiarity: float | None = Field(
        description="The least familiarity that an answer can have, 1 / (n + 1) among n reference rows. The "
        "min_familiarity of a request must be above it, or 0; null if answers have no familiarity."
    )
    training: dict[str, Any] = Field(
        description="Training record: settings, data, and the metrics on the validation rows."
    )
    validation: dict[str, Any] = Field(
        description="Latest metrics on validation rows: those of the trial that `blora tune` or `blora bayesianize` "
        "chose, or else those of the training; empty without a record of either."
    )
    policy: PolicyInForce | None = Field(description="Policy for requests without one.")
    calibration: Calibration | None = Field(
        description="Results proved on rows outside the training data: the levels by target_risk, each with "
        "probability 1 - delta over the draw of the rows, where delta is the sum over all uses of these rows; "
        "quantiles of prediction sets, reliability bins and the risk-coverage curve; counts of the proof's rows by "
        "choice, and the limit for each choice, max_missed of the last ask; null without a calibration."
    )
    drift_since: int | None = Field(
        description="Unix time at which the server first noticed that more questions are unfamiliar than the "
        "calibration allows, in seconds; null if it never did, or if the calibration has no gate."
    )


class AdapterList(Response):
    """List of the cards of all adapters."""

    object: Literal["list"] = "list"
    data: list[AdapterCard]
