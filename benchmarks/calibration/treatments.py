"""Metrics of log-probabilities, as trained and under each treatment, for a result file."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blora.config import MOST_LENGTH_POWER
from blora.decision.curves import auroc, reliability, risk_coverage
from blora.decision.metrics import metrics
from blora.decision.selective import ScoreName
from blora.decision.temperature import Recalibration, fit_recalibration, fit_temperature
from blora.scores import SCORES, scores_of

__all__ = ["Predictions", "Treatments", "evaluations", "uncertainty_scores"]

# Questions on either side behind an AUROC.
MIN_DETECTION = 30


@dataclass(frozen=True, slots=True)
class Predictions:
    """Log-probabilities of the choices of questions, with their labels.

    Attributes:
        log_probs: (S, B, C) under every draw, with the length that normalises them to the power of 1.
        labels: (B,).
        lengths: (B,) the length that normalises them, in tokens.
    """

    log_probs: Tensor
    labels: Tensor
    lengths: Tensor

    def under(self, recalibration: Recalibration) -> Tensor:
        """Return probabilities (S, B, C)."""
        return recalibration.of(self.log_probs, self.lengths)


@dataclass(frozen=True, slots=True)
class Treatments:
    """The treatments of log-probabilities, as fitted to validation rows.

    Attributes:
        temperature: of the treatment that has nothing else.
        recalibration: that of an adapter: a temperature, a power of the length, and a lapse rate.
    """

    temperature: float
    recalibration: Recalibration

    @classmethod
    def fit(cls, validation: Predictions) -> "Treatments":
        """Return the treatments with the lowest NLL of validation rows."""
        found = validation.log_probs, validation.labels
        recalibration = fit_recalibration(*found, validation.lengths, powers=(-1.0, MOST_LENGTH_POWER - 1))
        return cls(fit_temperature(*found), recalibration)

    def all(self) -> list[tuple[dict[str, bool], Recalibration]]:
        """Return each treatment, after the flags that mark it in a result file."""
        return [
            ({"tempered": False, "recalibrated": False}, Recalibration()),
            ({"tempered": True, "recalibrated": False}, Recalibration(self.temperature)),
            ({"tempered": True, "recalibrated": True}, self.recalibration),
        ]


def uncertainty_scores(probs: Tensor) -> dict[ScoreName, Tensor]:
    """Return every score of probabilities (S, B, C), each (B,), turned so that it is higher for less certain.

    A single draw has no mutual information.
    """
    return {name: -SCORES[name].certainty(values) for name, values in scores_of(probs).items()}


def evaluations(
    found: Predictions, treatments: Treatments, *, in_distribution: Predictions | None
) -> list[dict[str, Any]]:
    """Return all measurements on one test set, in every treatment.

    Args:
        found: of the test set.
        treatments: fitted to validation rows.
        in_distribution: of questions of the training distribution, from which those of a shifted set should be told
            apart; None where the set is of that distribution.
    """
    return [mark | _evaluation(found, done, in_distribution) for mark, done in treatments.all()]


def _evaluation(found: Predictions, done: Recalibration, in_distribution: Predictions | None) -> dict[str, Any]:
    probs, labels = found.under(done), found.labels
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
        "auroc_ood": _detection(probs, in_distribution.under(done)) if in_distribution is not None else None,
    }


def _detection(shifted: Tensor, in_distribution: Tensor) -> dict[str, float | None] | None:
    """Return the AUROC of each score for telling the two apart, among questions with equally many choices.

    The entropy of fewer choices is lower whatever a model knows. None where too few questions are left.
    """
    n_choices = int((in_distribution[0] > 0).sum(-1).mode().values)
    alike = [_with_choices(probs, n_choices) for probs in (shifted, in_distribution)]
    if min(probs.shape[1] for probs in alike) < MIN_DETECTION:
        return None
    out, inside = (uncertainty_scores(probs) for probs in alike)
    return {name: _auroc_against(score, inside[name]) for name, score in out.items()}


def _with_choices(probs: Tensor, n_choices: int) -> Tensor:
    """Return those of the questions (S, B, C) that have `n_choices` choices."""
    return probs[:, (probs[0] > 0).sum(-1) == n_choices]


def _auroc_against(out: Tensor, inside: Tensor) -> float | None:
    return auroc(torch.cat([out, inside]), torch.cat([torch.ones_like(out), torch.zeros_like(inside)]).bool())
