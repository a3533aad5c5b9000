"""The posterior predictive of one question and its scores, as plain numbers."""

from dataclasses import dataclass, make_dataclass
from typing import Any

import torch
from torch import Tensor

from blora.decision.temperature import guessed
from blora.errors import NumericalError, ShapeError
from blora.scores import DRAWN, TABLE, predictive_mean

__all__ = ["Prediction", "summarize"]

_FIELDS = [(score.name, float) for score in DRAWN.values()]
_Scores: Any = make_dataclass("_Scores", _FIELDS, frozen=True, slots=True, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(_Scores):  # type: ignore[misc]  # a type checker cannot read the table
    """The posterior predictive of one question, and a field for each score of `blora.scores.TABLE`.

    Attributes:
        familiarity: conformal p-value of the question; None for an adapter without a familiarity.
        probabilities: probability of each of the C choices, summing to 1.
        std: population standard deviation of each probability over the draws, before guesses.
        top: index of the most probable choice, the first one in a tie.
    """

    familiarity: float | None = None
    probabilities: tuple[float, ...]
    std: tuple[float, ...]
    top: int

    def scores(self) -> dict[str, float]:
        """Return the scores by name, without a familiarity that is unknown."""
        values = {score.name: getattr(self, score.name) for score in TABLE}
        return {name: value for name, value in values.items() if value is not None}


def summarize(probs: Tensor, familiarity: float | None = None, guesses: float = 0.0) -> Prediction:
    """Return the posterior predictive and the scores of one question, computed in float64.

    Args:
        probs: (S, C), one row per posterior draw.
        familiarity: conformal p-value of the question, if it is known.
        guesses: share of guesses that is added to every draw; mutual information and spread stay those of `probs`.

    Raises:
        ShapeError: if probs is not 2-D.
        NumericalError: if a probability is not finite.
    """
    if probs.ndim != 2:
        raise ShapeError(f"got probabilities of shape {tuple(probs.shape)}, expected (S, C)")
    if not bool(probs.isfinite().all()):
        raise NumericalError("got probabilities that are not finite, expected finite ones")
    probs = probs.detach().cpu().double()
    draws = (probs / probs.sum(-1, keepdim=True))[:, None]  # (S, 1, C)
    probs = guessed(draws, guesses, torch.ones(draws.shape[-1:])) if guesses else draws
    mean = predictive_mean(probs)[0]
    return Prediction(
        familiarity=familiarity,
        probabilities=tuple(mean.tolist()),
        std=tuple(draws[:, 0].std(0, correction=0).tolist()),
        top=int(mean.argmax()),
        **{name: score.values(probs, draws if guesses else None).item() for name, score in DRAWN.items()},
    )
