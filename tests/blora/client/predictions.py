"""Answers as a server would give them."""

from typing import Any

from blora.client.answers import Prediction


def body(**fields: Any) -> dict[str, Any]:
    """The JSON of an answer of which some fields are as given."""
    return {
        "id": "pred_1",
        "created": 1_790_000_000,
        "model": "tiny",
        "adapter": {"name": "triage", "digest": "sha256:1", "calibration_digest": "sha256:2"},
        "answer": "billing",
        "top_choice": "billing",
        "probabilities": [
            {"choice": "billing", "probability": 0.9, "std": 0.02},
            {"choice": "sales", "probability": 0.1, "std": 0.02},
        ],
        "confidence": 0.9,
        "predictive_entropy": 0.325,
        "expected_entropy": 0.3,
        "mutual_information": 0.025,
        "margin": 0.8,
        "prediction_set": None,
        "abstained": False,
        "abstain_reasons": [],
        "policy": None,
        "n_samples": 4,
        "usage": {"prompt_tokens": 4, "cached_tokens": 0, "scored_tokens": 2},
        "timing": {"queue_ms": 1.0, "compute_ms": 2.0},
    } | fields


def led_by(leader: str, other: str, confidence: float) -> dict[str, Any]:
    """The JSON of an answer with two choices, in the order of their probabilities."""
    shares = ((leader, confidence), (other, 1 - confidence))
    likely = [{"choice": choice, "probability": probability, "std": 0.02} for choice, probability in shares]
    return body(answer=leader, top_choice=leader, probabilities=likely, confidence=confidence)


def withheld(**fields: Any) -> dict[str, Any]:
    """The JSON of an abstention."""
    reason = {"reason": "low_confidence", "value": 0.9, "threshold": 0.95}
    return body(answer=None, abstained=True, abstain_reasons=[reason], **fields)


def prediction(**fields: Any) -> Prediction:
    """The same as a client has it."""
    return Prediction.model_validate(body(**fields))
