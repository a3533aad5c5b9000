"""Log-probabilities and labels to what a result file says of them."""

from typing import Any

import torch
from torch import Tensor

from blora.decision.calibrated import scores_of
from blora.decision.calibration import metrics, temper
from blora.decision.curves import auroc, reliability, risk_coverage
from blora.decision.selective import ScoreName

__all__ = ["evaluations", "uncertainty_scores"]

# Questions on either side behind an AUROC.
MIN_DETECTION = 30


def uncertainty_scores(probs: Tensor) -> dict[ScoreName, Tensor]:
    """Every uncertainty score of probabilities (S, B, C), each (B,), higher for less certain.

    The confidence enters as one minus itself. A single draw has no mutual information.
    """
    scores = scores_of(probs)
    return {**scores, "confidence": 1 - scores["confidence"]}


def evaluations(
    log_probs: Tensor, labels: Tensor, temperature: float, *, in_distribution: Tensor | None
) -> list[dict[str, Any]]:
    """Everything measured on one test set, as trained and at a temperature.

    Args:
        log_probs: (S, B, C) of every draw.
        labels: (B,).
        temperature: fitted on validation rows.
        in_distribution: (S, N, C) log-probabilities of questions of the training distribution, from which those of a
            shifted set should be told apart; None where the set is of that distribution.
    """
    return [
        {"tempered": tempered, **_evaluation(log_probs, labels, temperature if tempered else 1.0, in_distribution)}
        for tempered in (False, True)
    ]


def _evaluation(
    log_probs: Tensor, labels: Tensor, temperature: float, in_distribution: Tensor | None
) -> dict[str, Any]:
    probs = temper(log_probs, temperature)
    mean = probs.mean(0)
    wrong = mean.argmax(-1) != labels
    scores = uncertainty_scores(probs)
    return {
        "n_examples": len(labels),
        **metrics(mean, labels).to_dict(),
        "mean_confidence": mean.max(-1).values.mean().item(),
        "mean_mutual_information": scores["mutual_information"].mean().item() if len(probs) > 1 else None,
        "reliability": [each.to_dict() for each in reliability(mean, labels)],
        "risk_coverage": risk_coverage(mean.max(-1).values, ~wrong),
        "auroc_error": {name: auroc(score, wrong) for name, score in scores.items()},
        "auroc_ood": _detection(probs, temper(in_distribution, temperature)) if in_distribution is not None else None,
    }


def _detection(shifted: Tensor, in_distribution: Tensor) -> dict[str, float | None] | None:
    """AUROC of each score for telling the two apart, among questions with equally many choices.

    The entropy of fewer choices is lower whatever a model knows. None where that leaves too few questions.
    """
    n_choices = int((in_distribution[0] > 0).sum(-1).mode().values)
    alike = [_with_choices(probs, n_choices) for probs in (shifted, in_distribution)]
    if min(probs.shape[1] for probs in alike) < MIN_DETECTION:
        return None
    out, inside = (uncertainty_scores(probs) for probs in alike)
    return {name: _auroc_against(score, inside[name]) for name, score in out.items()}


def _with_choices(probs: Tensor, n_choices: int) -> Tensor:
    """Those of the questions (S, B, C) that have so many choices."""
    return probs[:, (probs[0] > 0).sum(-1) == n_choices]


def _auroc_against(out: Tensor, inside: Tensor) -> float | None:
    return auroc(torch.cat([out, inside]), torch.cat([torch.ones_like(out), torch.zeros_like(inside)]).bool())
