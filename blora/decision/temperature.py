"""Recalibration of log-probabilities by a temperature, a power of the choices' length, and a lapse rate.

Three numbers are fitted to the NLL of validation rows (`fit_recalibration`):

temperature: T divides the log-probabilities of the choices (Guo et al., 2017).
power: k makes the temperature T * L**k for a question whose choices have L tokens on average. A log-probability of L
    tokens, divided by L, varies less for longer choices, so a single temperature would leave short answers
    overconfident and long ones underconfident. The sum of the tokens' log-probabilities is then divided by
    T * L**(1 + k), so that the power 1 + k belongs to the scoring, and T alone is applied to the scores.
lapse: the probability that the model does no better than a guess on a question, at any confidence (the lapse rate of
    psychometric functions: Wichmann and Hill, 2001). Without a lapse rate a few confident wrong answers raise the
    temperature and make all other answers underconfident.

The prior of log T and of the power has a narrow peak at 0, where recalibration changes nothing, and wide tails. Its
penalty, counted once for all rows, keeps both near 0 until the rows' NLL improves by more than the penalty, and hardly
grows beyond that: six rows that happen to be right do not sharpen every answer, while hundreds of rows that need a
temperature of 20 get it.

Recalibration is applied to each draw before averaging, so that the predictive entropy is still the sum of an expected
entropy and a non-negative mutual information.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from blora.config import MOST_TEMPERATURE
from blora.decision.metrics import SMALLEST, nll, refuse_rows
from blora.errors import ShapeError

__all__ = ["FEW_ROWS", "MOST_LAPSE", "Recalibration", "fit_recalibration", "fit_temperature", "guessed", "temper"]

# A function of (log T, power, lapse rate) with its gradient.
Loss = Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]

LOG_TEMPERATURE = math.log(MOST_TEMPERATURE)
MOST_LAPSE = 0.5
# The prior of log T and of the power is a Cauchy density of this half width times a standard normal one.
PEAK_WIDTH = 0.2
# With fewer rows the priors still suppress a large part of the fit.
FEW_ROWS = 100
# The prior of the lapse rate is Beta(1, LAPSE_PRIOR), whose mean is a tenth.
LAPSE_PRIOR = 9
LAPSE_STARTS = (0.0, 0.1)  # initial rates of the search
# Most log-probabilities of the search from every start: of more, evenly spaced rows find the place from which all rows
# go on. With 64 draws of 150 choices it takes a sixth of the time. Each step then takes the rows in
# pieces of as many.
MOST_SEARCHED = 2**21


def temper(log_probs: Tensor, temperature: float | Tensor, lapse: float = 0.0, present: Tensor | None = None) -> Tensor:
    """Return probabilities (1 - lapse) * softmax(log p / T) + lapse / C under every draw, for questions of C choices.

    Args:
        log_probs: (S, ..., C) normalised log-probabilities, -inf for choices that a question does not have.
        temperature: T, which flattens above 1, sharpens below 1, and changes nothing at 1; one number, or one for each
            question, (B,), if log_probs is (S, B, C).
        lapse: lapse rate in [0, 1).
        present: (..., C) mask of the choices of each question; by default the choices with a finite log-probability
            under any draw.

    Returns:
        (S, ..., C) float64.
    """
    if isinstance(temperature, Tensor):
        temperature = temperature.double()[:, None]
    probs: Tensor = (log_probs.double() / temperature).softmax(-1)
    if lapse:
        if present is None:
            present = ~log_probs.isneginf().all(0)  # under a single draw a choice may have probability 0
        probs = guessed(probs, lapse, present)
    return probs


def guessed(probs: Tensor, share: float | Tensor, present: Tensor) -> Tensor:
    """Return probabilities of which a share are guesses, (1 - share) * p + share / C for questions of C choices.

    Args:
        probs: (..., C).
        share: one number, or numbers that broadcast with the probabilities.
        present: (..., C) mask of the choices of each question.
    """
    present = present.to(probs.dtype)
    return (1 - share) * probs + share * present / present.sum(-1, keepdim=True)


class Recalibration(NamedTuple):
    """The three numbers of a recalibration; the defaults change nothing.

    The power adds to the power that scoring already applied: `PromptConfig.length_power` becomes their sum.
    """

    temperature: float = 1.0
    power: float = 0.0
    lapse: float = 0.0

    def of(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        """Return probabilities (S, B, C) from log-probabilities (S, B, C) and the choices' mean token numbers (B,)."""
        return temper(log_probs, self.temperature * lengths.double() ** self.power, self.lapse)


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimises the penalised NLL of the predictive mean, without power and lapse rate.

    The method of Guo et al., 2017, for a posterior. The prior of log T prevents a handful of rows that all happen to be
    right from making every answer certain. The search over log T is bounded, far beyond any sensible temperature, so
    that it cannot diverge.

    Args:
        log_probs: (S, B, C) normalised log-probabilities of every draw, -inf for choices that a question does not have.
        labels: (B,).

    Raises:
        ShapeError: if the shapes do not fit.
        NumericalError: if a log-probability is NaN or +inf, a row has no choice, or a label is an absent choice.
    """
    _check(log_probs, labels)

    def loss(log_temperature: float) -> float:
        prior = float(_penalty(torch.tensor(log_temperature, dtype=torch.float64)))
        return nll(temper(log_probs, math.exp(log_temperature)).mean(0), labels) + prior / len(labels)

    return math.exp(_minimize(loss, -LOG_TEMPERATURE, LOG_TEMPERATURE))


def fit_recalibration(log_probs: Tensor, labels: Tensor, lengths: Tensor, powers: tuple[float, float]) -> Recalibration:
    """Return the recalibration that minimises the penalised NLL of the predictive mean.

    The temperature at the geometric mean of the lengths has the prior of `fit_temperature`. The power has the same
    prior; the prior of the lapse rate has a mean of a tenth and the weight of eight rows. If all questions have the
    same length, they carry no information about the power, which is 0 then. All three numbers are bounded, so that the
    search cannot diverge and the result is valid in an adapter's config.

    Args:
        log_probs: (S, B, C), as in `fit_temperature`.
        labels: (B,).
        lengths: (B,) mean number of tokens over each question's choices.
        powers: lower and upper limit of the power, around 0.

    Raises:
        ShapeError: if the shapes do not fit.
        NumericalError: as in `fit_temperature`.
    """
    _check(log_probs, labels)
    if lengths.shape != labels.shape:
        raise ShapeError(f"got lengths {tuple(lengths.shape)}, expected {tuple(labels.shape)}, one a row")
    logs = lengths.double().log()
    at_one_length = torch.allclose(logs, logs.mean())
    bounds = ((-LOG_TEMPERATURE, LOG_TEMPERATURE), (0.0, 0.0) if at_one_length else powers, (0.0, MOST_LAPSE))
    every = -(-log_probs.numel() // MOST_SEARCHED)
    some = log_probs[:, ::every], labels[::every]
    alone = math.log(fit_temperature(*some))
    starts = [(log_temperature, 0.0, lapse) for log_temperature in {0.0, alone} for lapse in LAPSE_STARTS]

    def search(loss: Loss, starts: Sequence[Sequence[float]]) -> list[float]:
        tried = [minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
        found: list[float] = min(tried, key=lambda result: float(result.fun)).x.tolist()
        return found

    found = search(_loss(*some, logs[::every], logs.mean(), len(labels)), starts)
    if every > 1:
        found = search(_loss(log_probs, labels, logs, logs.mean(), len(labels)), [found])
    log_temperature, power, lapse = found
    temperature = min(MOST_TEMPERATURE, max(1 / MOST_TEMPERATURE, math.exp(log_temperature)))  # rounding may exceed it
    return Recalibration(temperature, power, lapse)


def _loss(log_probs: Tensor, labels: Tensor, logs: Tensor, middle: Tensor, n_rows: int) -> Loss:
    """Return the penalised NLL of rows and its gradient as a function of log T at a length of 1, power and lapse rate.

    Args:
        log_probs: (S, B, C) of some or all of the rows.
        labels: (B,).
        logs: (B,) logarithms of the lengths.
        middle: mean logarithm of the lengths of all rows, where the temperature has its prior.
        n_rows: number of all rows.
    """
    # The gradient of a piece is computed before the next piece, because it takes ten times the piece's memory.
    size = max(1, MOST_SEARCHED // (log_probs.numel() // len(labels)))
    pieces = list(zip(log_probs.split(size, 1), labels.split(size), logs.split(size), strict=True))

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        log_temperature, power, lapse = at
        at_middle = log_temperature + power * middle
        prior = _penalty(at_middle) + _penalty(power) - (LAPSE_PRIOR - 1) * (1 - lapse).log()
        total = prior / n_rows
        total.backward()
        found = float(total.detach())
        for piece in pieces:
            total = _summed_nll(*piece, at) / len(labels)
            total.backward()
            found += float(total.detach())
        assert at.grad is not None
        return found, at.grad.numpy()

    return loss


def _summed_nll(log_probs: Tensor, labels: Tensor, logs: Tensor, at: Tensor) -> Tensor:
    """Return the summed NLL of rows at a tensor of log T at a length of 1, power and lapse rate."""
    log_temperature, power, lapse = at
    absent = log_probs.isneginf()
    finite = log_probs.double().masked_fill(absent, 0.0)  # a gradient through -inf would be NaN
    guess = 1 / (~absent.all(0)).sum(-1)
    picked = labels.long().expand(len(log_probs), -1)[..., None]
    scaled = finite * (-log_temperature - power * logs).exp()[:, None]
    log_p = scaled.masked_fill(absent, -math.inf).log_softmax(-1).gather(-1, picked)[..., 0]
    probs: Tensor = (1 - lapse) * log_p.exp().mean(0) + lapse * guess
    return -probs.clamp_min(SMALLEST).log().sum()


def _penalty(value: Tensor) -> Tensor:
    """Return the negative log-density of the prior of log T and of the power, shifted to 0 at 0."""
    return (value / PEAK_WIDTH).square().log1p() + value.square() / 2


def _minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the minimiser of a function: the best point of a grid and of a finer one around it, then refined."""
    # The prior's peak at 0 is narrower than a step of the first grid, whose odd number of points has one there.
    for n_points in (33, 9):
        grid = torch.linspace(low, high, n_points, dtype=torch.float64).tolist()
        best = min(range(n_points), key=lambda i: function(grid[i]))
        low, high = grid[max(0, best - 1)], grid[min(n_points - 1, best + 1)]
    return float(minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)


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
