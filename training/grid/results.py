"""Log-probabilities and labels to what a result file says of them."""

from typing import Any

import torch
from torch import Tensor

from blora.decision.calibration import metrics, temper
from blora.decision.curves import auroc, reliability, risk_coverage
from blora.decision.uncertainty import entropy, mutual_information

__all__ = ["evaluations", "uncertainty_scores"]


def uncertainty_scores(probs: Tensor) -> dict[str, Tensor]:
    """Every uncertainty score of probabilities (S, B, C), each (B,), higher for less certain.

    The confidence enters as one minus itself. A single draw has no mutual information.
    """
    mean = probs.mean(0)
    scores = {"confidence": 1 - mean.max(-1).values, "predictive_entropy": entropy(mean)}
    if len(probs) > 1:
        scores["mutual_information"] = mutual_information(probs)
    return scores


def evaluations(log_probs: Tensor, labels: Tensor, temperature: float, *, home: Tensor | None) -> list[dict[str, Any]]:
    """Everything measured on one test set, as trained and at a temperature.

    Args:
        log_probs: (S, B, C) of every draw.
        labels: (B,).
        temperature: fitted on validation rows.
        home: (S, N, C) log-probabilities of questions of the training distribution, from which those of a shifted set
            should be told apart; None where the set is of that distribution.
    """
    return [
        {"tempered": tempered, **_evaluation(log_probs, labels, temperature if tempered else 1.0, home)}
        for tempered in (False, True)
    ]


def _evaluation(log_probs: Tensor, labels: Tensor, temperature: float, home: Tensor | None) -> dict[str, Any]:
    probs = temper(log_probs, temperature)
    mean = probs.mean(0)
    wrong = mean.argmax(-1) != labels
    scores = uncertainty_scores(probs)
    foreign = None
    if home is not None:
        at_home = uncertainty_scores(temper(home, temperature))
        foreign = {name: _auroc_against(score, at_home[name]) for name, score in scores.items()}
    return {
        "n_examples": len(labels),
        **metrics(mean, labels).to_dict(),
        "mean_confidence": mean.max(-1).values.mean().item(),
        "mean_mutual_information": scores["mutual_information"].mean().item() if len(probs) > 1 else None,
        "reliability": [each.to_dict() for each in reliability(mean, labels)],
        "risk_coverage": risk_coverage(mean.max(-1).values, ~wrong),
        "auroc_error": {name: auroc(score, wrong) for name, score in scores.items()},
        "auroc_foreign": foreign,
    }


def _auroc_against(foreign: Tensor, home: Tensor) -> float | None:
    positive = torch.cat([torch.ones_like(foreign), torch.zeros_like(home)]).bool()
    return auroc(torch.cat([foreign, home]), positive)
