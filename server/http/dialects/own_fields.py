"""The fields of our own in the answers of every dialect."""

from typing import Any

from blora.scores import TABLE
from blora.server.prediction.decisions.answering import Answer

__all__ = ["own_fields", "scored_fields"]


def own_fields(answer: Answer) -> dict[str, Any]:
    """Return the fields that every answer has, a refusal too."""
    prediction = answer.prediction
    fields: dict[str, Any] = {
        "id": prediction.id,
        "abstained": prediction.abstained,
        "abstain_reasons": prediction.abstain_reasons,
        "calibrated": answer.uncalibrated_because is None,
        "uncalibrated_because": answer.uncalibrated_because,
        "policy": prediction.policy,
        "adapter": prediction.adapter,
        "n_samples": prediction.n_samples,
    }
    if prediction.feedback_requested is not None:
        fields["feedback_requested"] = prediction.feedback_requested
    if prediction.warnings:
        fields["warnings"] = prediction.warnings
    return fields


def scored_fields(answer: Answer) -> dict[str, Any]:
    """Return the fields of an answer with probabilities: those of every answer, its scores and its prediction set."""
    names = {score.name for score in TABLE} & answer.prediction.model_fields_set
    scores = {name: getattr(answer.prediction, name) for name in names if name != "confidence"}
    return {**own_fields(answer), **scores, "prediction_set": answer.prediction_set}
