"""From log-probabilities to calibrated probabilities: a temperature, what length does to it, and a share of guesses.

Three numbers are fitted to the NLL of validation rows (`fit_recalibration`):

temperature: T divides the log-probabilities of the choices (Guo et al., 2017).
power: k makes it T * L**k for a question whose choices have L tokens in the mean. A log-probability of L tokens,
    divided by L, varies the less the longer the choices are: one temperature for all leaves short answers too sure and
    long ones too unsure. The sum of the tokens' log-probabilities is then divided by T * L**(1 + k), so that the power
    1 + k belongs to the scoring, and T alone is applied to what scoring gives.
lapse: with this probability a question is one on which the model does no better than a guess, however sure it is (the
    lapse rate of psychometric functions: Wichmann and Hill, 2001). Without it a few answers that are sure and wrong
    drive the temperature up and make all others less sure than they should be.

Few rows change little and many rows decide alone: log T and the power have a prior with a narrow peak at 0, which
changes nothing, and wide tails. Its penalty, of all rows together, holds both near 0 until the rows gain more than that
from moving them, and then hardly pulls: six rows that happen to be right do not sharpen every answer, and hundreds that
ask for a temperature of 20 get it.

Each draw is treated so before draws are averaged, so that the predictive entropy still splits into an expected entropy
and a mutual information that is not negative.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from blora.config import MOST_TEMPERATURE
from blora.decision.metrics import nll, refuse_rows
from blora.errors import ShapeError

__all__ = ["FEW_ROWS", "MOST_LAPSE", "Recalibration", "fit_recalibration", "fit_temperature", "temper"]

LOG_TEMPERATURE = math.log(MOST_TEMPERATURE)
MOST_LAPSE = 0.5
# The prior of log T and of the power is a Cauchy density of this half width times a standard normal one.
PEAK_WIDTH = 0.2
# Below so many rows the priors still hold back a good part of what the rows ask for.
FEW_ROWS = 100
# The prior of the lapse rate is Beta(1, LAPSE_PRIOR), whose mean is a tenth.
LAPSE_PRIOR = 9
LAPSE_STARTS = (0.0, 0.1)  # rates to search from


def temper(log_probs: Tensor, temperature: float | Tensor, lapse: float = 0.0, present: Tensor | None = None) -> Tensor:
    """Probabilities of every draw: (1 - lapse) * softmax(log p / T) + lapse / C over the C choices of a question.

    Args:
        log_probs: (S, ..., C) normalised log-probabilities, -inf for choices that a question does not have.
        temperature: above 1 flattens, below 1 sharpens, 1 changes nothing; of all questions, or of each, (B,), where
            log_probs is (S, B, C).
        lapse: in [0, 1).
        present: (..., C) which choices a question has; by default those that any draw gives something.

    Returns:
        (S, ..., C) float64.
    """
    if isinstance(temperature, Tensor):
        temperature = temperature.double()[:, None]
    probs: Tensor = (log_probs.double() / temperature).softmax(-1)
    if lapse:
        if present is None:
            present = ~log_probs.isneginf().all(0)  # one draw may give a choice nothing
        probs = (1 - lapse) * probs + lapse * present / present.sum(-1, keepdim=True)
    return probs


class Recalibration(NamedTuple):
    """The three numbers; as they are by default, they change nothing.

    The power is on top of the one that scoring has raised the length to: `PromptConfig.length_power` becomes their sum.
    """

    temperature: float = 1.0
    power: float = 0.0
    lapse: float = 0.0

    def of(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        """Probabilities (S, B, C) of log-probabilities (S, B, C), given the mean tokens of choices, (B,)."""
        return temper(log_probs, self.temperature * lengths.double() ** self.power, self.lapse)


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The temperature alone at which the predictive mean has the lowest NLL (Guo et al., 2017, for a posterior).

    The prior of log T keeps a handful of rows that all happen to be right from making every answer certain. A
    bounded search over log T, with bounds far beyond any sensible temperature, so it cannot diverge.

    Args:
        log_probs: (S, B, C) normalised log-probabilities of every draw, -inf for choices that a question does not have.
        labels: (B,).

    Raises:
        ShapeError: if the shapes do not fit.
        NumericalError: if a log-probability is NaN or +inf, a row has no choice, or a label is on an absent one.
    """
    _check(log_probs, labels)

    def loss(log_temperature: float) -> float:
        prior = float(_penalty(torch.tensor(log_temperature, dtype=torch.float64)))
        return nll(temper(log_probs, math.exp(log_temperature)).mean(0), labels) + prior / len(labels)

    return math.exp(_minimize(loss, -LOG_TEMPERATURE, LOG_TEMPERATURE))


def fit_recalibration(log_probs: Tensor, labels: Tensor, lengths: Tensor, powers: tuple[float, float]) -> Recalibration:
    """The recalibration at which the predictive mean has the lowest NLL.

    The temperature has the prior of `fit_temperature`, at the geometric mean of the lengths; the power has the same,
    and the lapse rate one with a mean of a tenth that weighs as eight rows. Questions all of one length say nothing
    about the power, which is 0 then. All three are bounded, so that the search cannot diverge and an adapter can hold
    what it finds.

    Args:
        log_probs: (S, B, C), as in `fit_temperature`.
        labels: (B,).
        lengths: (B,) mean tokens of each question's choices.
        powers: the lowest and the highest to consider, around 0.

    Raises:
        ShapeError: if the shapes do not fit.
        NumericalError: as in `fit_temperature`.
    """
    alone = math.log(fit_temperature(log_probs, labels))
    if lengths.shape != labels.shape:
        raise ShapeError(f"got lengths {tuple(lengths.shape)}, expected {tuple(labels.shape)}, one a row")
    logs = lengths.double().log()
    middle = logs.mean()
    absent = log_probs.isneginf()
    finite = log_probs.double().masked_fill(absent, 0.0)  # a gradient through -inf would be NaN
    present = ~absent.all(0)
    guess = 1 / present.sum(-1)
    picked = labels.long().expand(len(log_probs), -1)[..., None]

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Penalised NLL and its gradient, of log T at a length of 1, the power and the lapse rate."""
        at = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        log_temperature, power, lapse = at
        scaled = finite * (-log_temperature - power * logs).exp()[:, None]
        log_p = scaled.masked_fill(absent, -math.inf).log_softmax(-1).gather(-1, picked)[..., 0]
        mean = log_p.exp().mean(0)
        tiny = torch.finfo(torch.float32).tiny
        found = -((1 - lapse) * mean + lapse * guess).clamp_min(tiny).log().mean()
        at_middle = log_temperature + power * middle
        prior = _penalty(at_middle) + _penalty(power) - (LAPSE_PRIOR - 1) * (1 - lapse).log()
        total = found + prior / len(labels)
        total.backward()
        assert at.grad is not None
        return float(total.detach()), at.grad.numpy()

    at_one_length = torch.allclose(logs, middle)
    bounds = ((-LOG_TEMPERATURE, LOG_TEMPERATURE), (0.0, 0.0) if at_one_length else powers, (0.0, MOST_LAPSE))
    starts = [(log_temperature, 0.0, lapse) for log_temperature in {0.0, alone} for lapse in LAPSE_STARTS]
    tried = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
    log_temperature, power, lapse = min(tried, key=lambda result: float(result.fun)).x.tolist()
    temperature = min(MOST_TEMPERATURE, max(1 / MOST_TEMPERATURE, math.exp(log_temperature)))  # a rounding beyond it
    return Recalibration(temperature, power, lapse)


def _penalty(value: Tensor) -> Tensor:
    """The negative log-density of the prior of log T and of the power, 0 at 0."""
    return (value / PEAK_WIDTH).square().log1p() + value.square() / 2


def _minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function is lowest: a grid finds the valley, a bounded search its bottom."""
    grid = torch.linspace(low, high, 129).tolist()
    best = min(range(len(grid)), key=lambda i: function(grid[i]))
    around = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    return float(minimize_scalar(function, bounds=around, method="bounded", options={"xatol": 1e-6}).x)


def _check(log_probs: Tensor, labels: Tensor) -> None:
    if log_probs.ndim != 3 or len(log_probs) == 0 or labels.shape != log_probs.shape[1:2] or len(labels) == 0:
        raise ShapeError(
            f"got log-probabilities {tuple(log_probs.shape)} and labels {tuple(labels.shape)}, "
            "expected (S, B, C) and (B,), S and B >= 1"
        )
    unusable = (log_probs.isnan() | log_probs.isposinf()).any(-1).any(0)
    refuse_rows(unusable, "log-probabilities of NaN or +inf", "finite ones, and -inf for absent choices")
    absent = log_probs.isneginf()  # (S, B, C)
    refuse_rows(absent.all(-1).any(0), "no choice with a probability", "at least one finite log-probability a draw")
    of_label = absent.all(0).gather(1, labels.long()[:, None])[:, 0]
    refuse_rows(of_label, "a label on an absent choice", "the label of a choice that the question has")
