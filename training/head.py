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
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import softmax
from torch import Tensor

from blora.config import HeadConfig
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
MOST_STEPS = 300

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

    def solve(self, state_precision: float, count_precision: float, start: DecisionHead | None) -> DecisionHead:
        """Return the head at the minimum, with its deviations.

        Args:
            state_precision: prior precision per unit of a standardised state.
            count_precision: prior precision per unit of a count.
            start: a head to start from.
        """
        blank = self.blank
        # The projected states have the standardised ones' variance on fewer directions.
        on_z = state_precision * len(blank.directions) / len(blank.center)
        shapes = [tuple(part.shape) for part in (blank.weight, blank.count_weight, blank.bias)]
        sizes = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

        def parts(values: Vector) -> list[Floats]:
            return [
                part.reshape(shape) for part, shape in zip(np.split(values.astype("f"), sizes), shapes, strict=True)
            ]

        def loss(values: Vector) -> tuple[float, Vector]:
            weight, count_weight, bias = parts(values)
            found, residual = self._cross_entropy(self.z @ weight + self.counts @ count_weight + bias)
            gradient = [np.zeros_like(weight), np.zeros_like(count_weight), residual.sum(0)]
            penalty = 0.0
            for k, (inputs, part, precision) in enumerate(
                [(self.z, weight, on_z), (self.counts, count_weight, count_precision)]
            ):
                if precision != OFF:
                    gradient[k] = inputs.T @ residual + precision * part
                    penalty += precision * float(np.square(part).sum())
            n = len(self.labels)
            flat = np.concatenate([np.ravel(part) for part in gradient]).astype("d")
            return float(found + penalty / 2) / n, flat / n

        first = start or blank
        at = torch.cat([part.flatten() for part in (first.weight, first.count_weight, first.bias)]).double().numpy()
        solved = minimize(loss, at, jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS, "gtol": 1e-6})
        weight, count_weight, bias = parts(solved.x)
        probs = self._probabilities(self.z @ weight + self.counts @ count_weight + bias)
        curvature, basis, fisher = self._curvature(probs)
        deviation = 1 / np.sqrt(np.outer(curvature, fisher) + on_z)
        found = {"weight": weight, "count_weight": count_weight, "bias": bias, "deviation": deviation, "basis": basis}
        tensors = {name: torch.tensor(np.ascontiguousarray(value, "f")) for name, value in found.items()}
        return DecisionHead(blank.config, **blank.tensors() | tensors)

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
    kept = max(1, int((values > 1e-6 * values[0]).sum()))
    unit = (values[:kept].sum() / (n_rows * kept)).sqrt()
    directions: Tensor = vectors[:kept] / unit
    return directions.half().float().contiguous()
