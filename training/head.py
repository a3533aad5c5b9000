"""Fitting of a decision head on states that are computed once: regularised regression, then a Laplace approximation.

The weights minimise the cross-entropy plus precision / 2 times their squared norm, which is convex. The precisions of
the states' and the counts' weights are those with the lowest recalibrated NLL on validation rows. The posterior's
covariance is the Kronecker-factored Laplace approximation (Ritter et al., 2018) at that minimum. Its inputs' factor is
diagonal, a_i = sum over rows of z_i^2, because the directions are principal ones; its outputs' factor is the mean
Fisher information of the logits. A pointer head, which has one output, uses the Fisher information's exact diagonal.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse import csr_matrix
from scipy.special import softmax
from torch import Tensor

from blora.config import HeadConfig
from blora.errors import DataError
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import DecisionHead, Features
from blora.posterior.draws import Draws
from blora.training.rows import LabelledRow, labels_of
from blora.training.tune import Trial, trial_of

__all__ = ["PARTS", "FittedHead", "Regression", "fit_head"]

# Prior precisions to try, per unit of a standardised state and of a count.
STATE_PRECISIONS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
COUNT_PRECISIONS = (0.03, 0.1, 0.3, 1.0)
# Precision that switches a part of the inputs off.
OFF = float("inf")
# Parts of the inputs that a head can be fitted on.
PARTS = ("counts", "states", "both")
# Rows from which the directions are computed, so that large data sets need no more time.
MOST_ROWS_OF_DIRECTIONS = 4096
# Most steps of a fit, and the fall of the loss per row at which it ends.
MOST_STEPS = 300
TOLERANCE = 1e-7

Vector = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head at the precisions with the lowest recalibrated validation NLL.

    Attributes:
        head: the head, with the Laplace approximation's deviations.
        precisions: prior precisions of the states' and the counts' weights.
        trial: recalibration and metrics of the posterior mean on the validation rows.
    """

    head: DecisionHead
    precisions: tuple[float, float]
    trial: Trial


def fit_head(
    regression: "Regression",
    validation: Features,
    validation_rows: Sequence[LabelledRow],
    lora: Draws,
    part: str = "both",
) -> FittedHead:
    """Return the head that a part of the inputs gives, at the best precisions.

    Args:
        regression: the training rows.
        validation: features of the validation rows, which choose the precisions.
        validation_rows: the validation rows.
        lora: the LoRA below the head, for the validation.
        part: one of `PARTS`; the head's weights of the other inputs are zero.
    """
    tried: dict[tuple[float, float], FittedHead] = {}

    def fitted(precisions: tuple[float, float], start: FittedHead | None) -> FittedHead:
        if precisions not in tried:
            head = regression.solve(*precisions, start.head if start is not None else None)
            log_probs = head_log_probs(head.mean(lora), [row.row for row in validation_rows], validation)
            tried[precisions] = FittedHead(head, precisions, trial_of(0.0, log_probs, validation_rows))
        return tried[precisions]

    states = (OFF,) if part == "counts" else STATE_PRECISIONS
    counts = (OFF,) if part == "states" else COUNT_PRECISIONS if regression.owner is None else (1.0,)
    best = fitted((states[len(states) // 2], counts[len(counts) // 2]), None)
    for candidates in _sweeps(states, counts):
        found = [fitted(precisions, best) for precisions in candidates(best)]
        best = min(found, key=lambda one: one.trial.metrics.nll)
    return best


def _sweeps(
    states: Sequence[float], counts: Sequence[float]
) -> Iterator[Callable[[FittedHead], list[tuple[float, float]]]]:
    """Yield searches over the precision of the states, of the counts, and of the states again."""

    def over_states(best: FittedHead) -> list[tuple[float, float]]:
        return [(state, best.precisions[1]) for state in states]

    def over_counts(best: FittedHead) -> list[tuple[float, float]]:
        return [(best.precisions[0], count) for count in counts]

    yield from (over_states, over_counts, over_states)


@dataclass(frozen=True, slots=True)
class Regression:
    """The regression of labels on inputs: N questions, or the R choices of N questions, row after row.

    Attributes:
        blank: the head with its standardisation, and weights of zero.
        z: (N or R, K) float32 projected states.
        counts: (N or R, M) scaled counts.
        labels: (N,) the right output; or (N,) the row of the right choice.
        owner: (R,) the question of each choice; None for fixed choices.
    """

    blank: DecisionHead
    z: Floats
    counts: csr_matrix
    labels: NDArray[np.int64]
    owner: NDArray[np.int64] | None

    @classmethod
    def of(cls, config: HeadConfig, features: Features, rows: Sequence[LabelledRow]) -> "Regression":
        """Return the regression of labelled rows on their features.

        Args:
            config: the head's settings; fewer directions are used if the rows span fewer.
            features: the rows' features.
            rows: the labelled rows.
        """
        labels = labels_of(rows)
        if features.states.ndim == 2:
            n_outputs = 1 + max(max(row.row.outputs) for row in rows)
            labels = torch.tensor([row.row.outputs[row.label] for row in rows])
            states, counts, owner = features.states, features.counts, None
            present = counts != 0
            count_scale = ((1 + len(counts)) / (1 + present.sum(0))).log() + 1  # inverse document frequency
            center = states.mean(0)
        else:
            n_outputs = 1
            sizes = torch.tensor([row.row.n_choices for row in rows])
            mask = torch.arange(features.states.shape[1]) < sizes[:, None]
            states = features.states * mask[..., None]
            states = (states - (states.sum(1) / sizes[:, None])[:, None])[mask]  # a constant per question cancels
            counts, owner = features.counts[mask], torch.arange(len(rows)).repeat_interleave(sizes)
            count_scale = 1 / counts.std(0).clamp_min(1e-6)
            center = torch.zeros(states.shape[-1])
            labels = labels + sizes.cumsum(0) - sizes
        scale = (states - center).square().mean(0).sqrt().clamp_min(1e-6)
        directions = _directions((states - center) / scale, config.n_directions)
        n_directions, n_counts = len(directions), counts.shape[-1]
        blank = DecisionHead(
            replace(config, n_states=states.shape[-1], n_directions=n_directions),
            center=center,
            scale=scale,
            directions=directions,
            count_scale=count_scale,
            weight=torch.zeros(n_directions, n_outputs),
            deviation=torch.zeros(n_directions, n_outputs),
            basis=torch.eye(n_outputs),
            count_weight=torch.zeros(n_counts, n_outputs),
            bias=torch.zeros(n_outputs),
        )
        return cls(
            blank,
            blank.project(states).numpy(),
            csr_matrix(blank.scaled(counts).numpy()),
            labels.numpy(),
            owner.numpy() if owner is not None else None,
        )

    def precision_of(self, state_precision: float) -> float:
        """Return the prior precision of the projected states' weights, of a precision per standardised state."""
        # The projected states have the standardised ones' variance on fewer directions.
        return state_precision * len(self.blank.directions) / len(self.blank.center)

    def solve(self, state_precision: float, count_precision: float, start: DecisionHead | None) -> DecisionHead:
        """Return the head at the minimum, with its deviations.

        Args:
            state_precision: prior precision per unit of a standardised state.
            count_precision: prior precision per unit of a count.
            start: a head to start from.
        """
        blank, on_z = self.blank, self.precision_of(state_precision)
        weights = self._minimum(on_z, count_precision, start or blank)
        curvature, basis, fisher = self._curvature(self._probabilities(self._logits(weights)))
        deviation = 1 / np.sqrt(np.outer(curvature, fisher) + on_z)
        weight, count_weight, bias = weights
        found = {
            "weight": weight,
            "count_weight": count_weight,
            "bias": bias[0],
            "deviation": deviation,
            "basis": basis,
        }
        tensors = {name: torch.tensor(np.ascontiguousarray(value, "f")) for name, value in found.items()}
        return DecisionHead(blank.config, **blank.tensors() | tensors)

    def _minimum(self, on_z: float, on_counts: float, start: DecisionHead) -> list[Floats]:
        """Return W, V and the bias (1, O) at the minimum.

        L-BFGS sees every weight in units of its curvature where all outcomes are equally probable. A part that is
        switched off has units of zero.
        """
        n_rows = len(self.labels)
        n_outcomes = self.blank.n_outputs if self.owner is None else len(self.z) / n_rows
        fisher = (1 - 1 / n_outcomes) / n_outcomes
        squares = np.square(self.z).sum(0), np.asarray(self.counts.power(2).sum(0))[0], np.full(1, n_rows)
        precisions = on_z, on_counts, 0.0
        units = [
            (1 / np.sqrt(fisher * square + precision)).astype("f")[:, None]
            for square, precision in zip(squares, precisions, strict=True)
        ]
        penalties = [precision if precision != OFF else 0.0 for precision in precisions]
        scaled = [
            (part / torch.from_numpy(unit)).nan_to_num()
            for part, unit in zip((start.weight, start.count_weight, start.bias[None]), units, strict=True)
        ]

        def weights() -> list[Floats]:
            return [part.numpy() * unit for part, unit in zip(scaled, units, strict=True)]

        def loss() -> float:
            found = weights()
            total, residual = self._cross_entropy(self._logits(found))
            gradients = self.z.T @ residual, self.counts.T @ residual, residual.sum(0, keepdims=True)
            for part, weight, gradient, penalty, unit in zip(scaled, found, gradients, penalties, units, strict=True):
                total += penalty * float(np.square(weight).sum()) / 2
                part.grad = torch.from_numpy((gradient + penalty * weight) * unit / n_rows).float()
            return total / n_rows

        optimizer = torch.optim.LBFGS(
            scaled,
            max_iter=MOST_STEPS,
            tolerance_grad=0,
            tolerance_change=TOLERANCE,
            history_size=10,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(loss)
        return weights()

    def _logits(self, weights: Sequence[Floats]) -> Floats:
        """Return the logits of W, V and the bias."""
        weight, count_weight, bias = weights
        logits: Floats = self.z @ weight + self.counts @ count_weight + bias
        return logits

    def _probabilities(self, logits: Floats) -> Floats:
        """Return the softmax over outputs, or over the choices of each question."""
        if self.owner is None:
            probs: Floats = softmax(logits, 1)
            return probs
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        shifted: Floats = np.exp(logits - np.maximum.reduceat(logits, starts)[self.owner])
        return np.asarray(shifted / np.add.reduceat(shifted, starts)[self.owner], "f")

    def _cross_entropy(self, logits: Floats) -> tuple[float, Floats]:
        """Return the summed cross-entropy and its gradient in the logits."""
        probs = self._probabilities(logits)
        at = (np.arange(len(self.labels)), self.labels) if self.owner is None else (self.labels, 0)
        found = -np.log(np.maximum(probs[at], 1e-30)).sum(dtype="d")
        probs[at] -= 1
        return float(found), probs

    def _curvature(self, probs: Floats) -> tuple[Vector, Vector, Vector]:
        """Return a (K,), the basis (O, O) and g (O,) of the Laplace approximation."""
        if self.owner is None:
            fisher = np.diag(probs.mean(0)) - probs.T @ probs / len(probs)
            values, vectors = np.linalg.eigh(fisher.astype("d"))
            return np.square(self.z).sum(0, dtype="d"), vectors, np.maximum(values, 0)
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        mean = np.add.reduceat(probs * self.z, starts)
        curvature: Vector = (probs * np.square(self.z - mean[self.owner])).sum(0, dtype="d")
        return curvature, np.eye(1), np.ones(1)


def _directions(states: Tensor, n_directions: int) -> Tensor:
    """Return the leading principal directions of standardised states (N, F) as (K, F), rounded to float16.

    Projected states have a standard deviation of 1 over all directions together. K is smaller than asked for if the
    rows span fewer directions.
    """
    every = max(1, -(-len(states) // MOST_ROWS_OF_DIRECTIONS))
    states = states[::every]
    n_rows, n_states = states.shape
    wide = n_states > n_rows
    gram = (states @ states.T if wide else states.T @ states).double().numpy()
    wanted = [max(0, len(gram) - n_directions), len(gram) - 1]
    found, basis = eigh(gram, subset_by_index=wanted)  # in rising order
    values, vectors = torch.from_numpy(found).flip(0), torch.from_numpy(basis).flip(1).T
    if wide:
        vectors = vectors @ states.double() / values.clamp_min(1e-9).sqrt()[:, None]
    if values[0] <= 0:
        raise DataError("got training rows that the model cannot tell apart, expected at least two different texts")
    kept = max(1, int((values > 1e-6 * values[0]).sum()))
    unit = (values[:kept].sum() / (n_rows * kept)).sqrt()
    directions: Tensor = vectors[:kept] / unit
    return directions.half().float().contiguous()
