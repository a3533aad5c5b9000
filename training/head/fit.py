"""Fitting of a decision head on states that are computed once: regularised regression, then a Laplace approximation.

Heads for fixed choices are products of such fits: see `blora.training.head.pool`.

The weights and the bias minimise the cross-entropy plus precision / 2 times the squared norm of the weights, which is
convex; the bias has no penalty. The precisions of the weights of states, counts and products are those with the lowest
recalibrated NLL on validation rows, from grids that continue where an end is best unless these rows are few; that of a
pointer head's counts is 1, and it has products only if these lower that NLL clearly. The posterior's covariance is the
Kronecker-factored Laplace approximation (Ritter et al., 2018) at that minimum. Its inputs' factor is diagonal,
a_i = sum over rows of z_i^2, because the directions are principal ones (those of a companion are so among themselves,
and what they have in common with the base model's is left out); its outputs' factor is the mean Fisher information of
the logits. A pointer head, which has one output, uses the Fisher information's exact diagonal.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from blora.config import HeadConfig
from blora.decision.temperature import FEW_ROWS
from blora.errors import DataError
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import DecisionHead, Features
from blora.posterior.draws import Draws
from blora.training.head.grams import known_grams
from blora.training.head.inputs import Floats, HeadInputs
from blora.training.head.principal import principal_directions, varies
from blora.training.rows.packed import LabelledRow, labels_of
from blora.training.trials import Trial, trial_of

__all__ = ["OFF", "PARTS", "FittedHead", "Precisions", "Regression", "beside_blas", "fit_head"]

# Prior precisions to try, per unit of a standardised state and of a count.
STATE_PRECISIONS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
COUNT_PRECISIONS = (0.03, 0.1, 0.3, 1.0)
# The same per unit of a product of two projected states, and the most directions of prompts and choices in products.
PRODUCT_PRECISIONS = (100.0, 300.0, 1000.0, 3000.0)
N_PRODUCTS = (128, 64)
# Factor between the precisions that continue a grid whose end is best, and the most of them: labels that hardly depend
# on the text want far higher precisions than those of most tasks.
BEYOND, MOST_BEYOND = 3.0, 4
# Fall of the validation NLL for which products are taken: with them a head has several times as many weights.
LEAST_GAIN_NATS = 0.01
# Precision that switches a part of the inputs off.
OFF = float("inf")
# Parts of the inputs that a head can be fitted on.
PARTS = ("counts", "states", "both")
# Largest size of the Gram matrix that the directions are computed from.
MOST_GRAM = 4096
# Most steps of a fit, and the fall of the loss per row at which it ends.
MOST_STEPS = 300
TOLERANCE = 5e-7
# Least curvature of the loss in a weight: the bias of a label without rows would have none.
LEAST_CURVATURE = 1e-3

# Prior precisions of the weights of states, counts and products.
Precisions = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head at the precisions with the lowest recalibrated validation NLL.

    Attributes:
        head: the head, with the Laplace approximation's deviations.
        precisions: prior precisions of the weights of states, counts and products.
        trial: recalibration and metrics of the posterior mean on the validation rows.
    """

    head: DecisionHead
    precisions: Precisions
    trial: Trial


@contextmanager
def beside_blas() -> Iterator[None]:
    """Let torch compute with one thread inside the context, and numpy not warn of invalid operations.

    numpy's BLAS has threads of its own, which wait for their next call without giving the processors back. Beside more
    threads of torch, each step of the optimiser took ten times as long. On processors with AVX-512 it also flags
    products of small finite numbers as invalid now and then; numbers that are not finite end a fit with an error.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with np.errstate(invalid="ignore"):
            yield
    finally:
        torch.set_num_threads(n_threads)


@beside_blas()
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
    tried: dict[Precisions, FittedHead] = {}

    def fitted(precisions: Precisions, start: FittedHead | None) -> FittedHead:
        if precisions not in tried:
            head = regression.solve(*precisions, start.head if start is not None else None)
            log_probs = head_log_probs(head.mean(lora), [row.row for row in validation_rows], validation)
            tried[precisions] = FittedHead(head, precisions, trial_of(0.0, log_probs, validation_rows))
        return tried[precisions]

    def nll_of(one: FittedHead) -> float:
        return one.trial.metrics.nll

    def search(best: FittedHead, *sweeps: tuple[int, Sequence[float]]) -> FittedHead:
        for place, grid in sweeps:
            found = [fitted(_with(best.precisions, place, precision), best) for precision in grid]
            best = min(found, key=nll_of)
            if len(grid) > 1 and len(validation_rows) >= FEW_ROWS:
                best = further(further(best, place, grid[0], 1 / BEYOND), place, grid[-1], BEYOND)
        return best

    def further(best: FittedHead, place: int, end: float, factor: float) -> FittedHead:
        for _ in range(MOST_BEYOND):
            if best.precisions[place] != end:
                break
            end *= factor
            best = min(best, fitted(_with(best.precisions, place, end), best), key=nll_of)
        return best

    states = (OFF,) if part == "counts" else STATE_PRECISIONS
    counts = (OFF,) if part == "states" else COUNT_PRECISIONS if regression.owner is None else (1.0,)
    middle = states[len(states) // 2]
    plain = search(fitted((middle, counts[len(counts) // 2], OFF), None), (0, states), (1, counts), (0, states))
    if part != "both" or not regression.prompts.shape[1]:
        return plain
    products, beside = (2, PRODUCT_PRECISIONS), (0, states)
    rich = search(fitted(_with(plain.precisions, 0, middle), plain), products, beside, products, beside)
    return rich if nll_of(rich) < nll_of(plain) - LEAST_GAIN_NATS else plain


def _with(precisions: Precisions, place: int, precision: float) -> Precisions:
    """Return the precisions with another one at a place."""
    changed = [*precisions]
    changed[place] = precision
    return changed[0], changed[1], changed[2]


@dataclass(frozen=True, slots=True)
class Regression:
    """The regression of labels on inputs: N questions, or the R choices of N questions, row after row.

    Attributes:
        blank: the head with its standardisation, and weights of zero.
        z: (N or R, K) float32 projected states.
        counts: (N or R, M) scaled counts.
        labels: (N,) the right output; or (N,) the row of the right choice.
        owner: (R,) the question of each choice; None for fixed choices.
        prompts: (N, P) float32 projected states of the prompts, for products; (0, 0) without products.
    """

    blank: DecisionHead
    z: Floats
    counts: csr_matrix
    labels: NDArray[np.int64]
    owner: NDArray[np.int64] | None
    prompts: Floats

    @classmethod
    def of(cls, config: HeadConfig, features: Features, rows: Sequence[LabelledRow]) -> "Regression":
        """Return the regression of labelled rows on their features.

        Args:
            config: the head's settings; fewer directions are used if the rows span fewer, and fewer n-grams if fewer
                occur in several texts.
            features: the rows' features.
            rows: the labelled rows.
        """
        labels = labels_of(rows)
        if features.owner is None:
            n_outputs = 1 + max(max(row.row.outputs) for row in rows)
            labels = torch.tensor([row.row.outputs[row.label] for row in rows])
            states, owner = features.states, None
            grams, count_scale = known_grams(features.grams, config.n_grams)
            center = states.mean(0)
        else:
            n_outputs = 1
            states, owner, grams = features.states, features.owner, torch.zeros(0, dtype=torch.int32)
            sizes = owner.bincount()
            sums = torch.zeros(len(rows), states.shape[-1]).index_add(0, owner, states)
            states = states - (sums / sizes[:, None])[owner]  # a constant per question cancels
            count_scale = 1 / features.counts.std(0).clamp_min(1e-6)
            center = torch.zeros(states.shape[-1])
            labels = labels + sizes.cumsum(0) - sizes
        scale, standardised = _standardised(states - center, features.states)
        directions = _directions(standardised, config.n_directions)
        n_directions, n_counts = len(directions), len(count_scale)
        prompts = features.prompt if owner is not None else None
        of_prompt = _of_prompt(prompts) if prompts is not None else {}
        products = (len(of_prompt["prompt_directions"]), min(N_PRODUCTS[1], n_directions)) if of_prompt else (0, 0)
        n_weights = n_directions + products[0] * products[1]
        blank = DecisionHead(
            replace(
                config,
                n_states=states.shape[-1],
                n_directions=n_directions,
                n_grams=len(grams),
                n_products=products,
            ),
            center=center,
            scale=scale,
            directions=directions,
            count_scale=count_scale,
            weight=torch.zeros(n_weights, n_outputs),
            deviation=torch.zeros(n_weights, n_outputs),
            basis=torch.eye(n_outputs),
            count_weight=torch.zeros(n_counts, n_outputs),
            bias=torch.zeros(n_outputs),
            grams=grams,
            **of_prompt,
        )
        return cls(
            blank,
            blank.project(states).numpy(),
            _sparse(blank, features),
            labels.numpy(),
            owner.numpy() if owner is not None else None,
            blank.project_prompt(prompts).numpy() if prompts is not None and of_prompt else np.zeros((0, 0), "f"),
        )

    def check_told_apart(self) -> None:
        """Raise a DataError if the states of all rows are the same."""
        if not self.blank.directions.any():
            raise DataError(
                "got training rows that the model cannot tell apart, expected at least two different texts: bring more "
                "rows, of which some are set aside for validation"
            )

    def precision_of(self, state_precision: float) -> float:
        """Return the prior precision of the projected states' weights, of a precision per standardised state."""
        # The projected states have the standardised ones' variance on fewer directions.
        return state_precision * len(self.blank.directions) / len(self.blank.center)

    @beside_blas()
    def solve(
        self, state_precision: float, count_precision: float, product_precision: float, start: DecisionHead | None
    ) -> DecisionHead:
        """Return the head at the minimum, with its deviations.

        Args:
            state_precision: prior precision per unit of a standardised state.
            count_precision: prior precision per unit of a count.
            product_precision: prior precision per unit of a product of two projected states.
            start: a head to start from.
        """
        blank = self.blank if product_precision != OFF else self.blank.without_products()
        n_prompt, n_choice = blank.config.n_products
        counts = self.counts if count_precision != OFF else self.counts[:, :0]
        inputs = HeadInputs(self.z, counts, self.owner, self.prompts[:, :n_prompt], n_choice)
        precisions = self.precision_of(state_precision), product_precision * inputs.unit_of_products, count_precision
        weights = self._minimum(inputs, precisions, start or blank)
        curvature, basis, fisher = inputs.curvature(inputs.probabilities(inputs.logits(weights)))
        of_weights = np.repeat(precisions[:2], [len(weights[0]), len(weights[1])])[:, None]
        deviation = 1 / np.sqrt(np.outer(curvature, fisher) + of_weights)
        weight, of_products, count_weight, bias = weights
        without = np.zeros((self.counts.shape[1] - counts.shape[1], self.blank.n_outputs), "f")
        found = {
            "weight": np.concatenate([weight, of_products]),
            "count_weight": np.concatenate([count_weight, without]),
            "bias": bias[0],
            "deviation": deviation,
            "basis": basis,
        }
        tensors = {name: torch.tensor(np.ascontiguousarray(value, "f")) for name, value in found.items()}
        return DecisionHead(blank.config, **blank.tensors() | tensors)

    def _minimum(self, inputs: HeadInputs, precisions: Precisions, start: DecisionHead) -> list[Floats]:
        """Return the weights at the minimum, part by part.

        L-BFGS sees every weight in units of its curvature at the start. A part that is switched off has units of zero.
        """
        n_rows, own = len(self.labels), self.z.shape[1]
        penalties = [precision if precision != OFF else 0.0 for precision in (*precisions, 0.0)]
        of_products = torch.zeros(inputs.prompts.shape[1] * inputs.n_choice, self.blank.n_outputs)
        of_products[: len(start.weight) - own] = start.weight[own:][: len(of_products)]
        parts = start.weight[:own], of_products, start.count_weight[: inputs.counts.shape[1]], start.bias[None]
        probs = inputs.probabilities(inputs.logits([part.numpy() for part in parts]))
        units = [
            (1 / np.sqrt(np.maximum(square, LEAST_CURVATURE) + precision)).astype("f")
            for square, precision in zip(inputs.squares(probs * (1 - probs)), (*precisions, 0.0), strict=True)
        ]
        scaled = [(part / torch.from_numpy(unit)).nan_to_num() for part, unit in zip(parts, units, strict=True)]

        def weights() -> list[Floats]:
            return [part.numpy() * unit for part, unit in zip(scaled, units, strict=True)]

        def loss() -> float:
            found = weights()
            total, residual = self._cross_entropy(inputs.probabilities(inputs.logits(found)))
            gradients = inputs.gradients(residual)
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

    def _cross_entropy(self, probs: Floats) -> tuple[float, Floats]:
        """Return the summed cross-entropy of probabilities, and its gradient in the logits."""
        at = (np.arange(len(self.labels)), self.labels) if self.owner is None else (self.labels, 0)
        found = -np.log(np.maximum(probs[at], 1e-30)).sum(dtype="d")
        probs[at] -= 1
        return float(found), probs


def _sparse(head: DecisionHead, features: Features) -> csr_matrix:
    """Return the scaled counts of rows, or the weights of their n-grams."""
    if features.owner is not None:
        return csr_matrix(head.scaled(features.counts).numpy())
    if not len(head.grams):
        return csr_matrix((len(features), 0), dtype="f")
    columns, values, begins = (part.numpy() for part in head.weighted(features.grams))
    return csr_matrix((values, columns, begins), (len(features), len(head.grams)))


def _of_prompt(states: Tensor) -> dict[str, Tensor]:
    """Return the standardisation and projection of prompts' states (N, F) for products; nothing for equal prompts."""
    center = states.mean(0)
    scale, standardised = _standardised(states - center, states)
    if not standardised.any():
        return {}
    directions = _directions(standardised, N_PRODUCTS[0])
    return {"prompt_center": center, "prompt_scale": scale, "prompt_directions": directions}


def _standardised(centred: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviation (F,) of centred states, and these (N, F) over it.

    Where rows differ by rounding alone the standard deviation is given as 1, and the standardised states are zero.
    """
    spread = centred.square().mean(0).sqrt()
    varying = varies(spread, states)
    scale = torch.where(varying, spread, 1.0)
    return scale, centred / scale * varying


def _directions(states: Tensor, n_directions: int) -> Tensor:
    """Return the leading principal directions of standardised states (N, F) as (K, F), rounded to float16.

    Projected states have a standard deviation of 1 over all directions together. K is smaller than asked for if the
    rows span fewer directions; the single direction of states that do not vary is zero.
    """
    if not states.any():
        return torch.zeros(1, states.shape[1])
    directions, variances = principal_directions(states, n_directions, MOST_GRAM)
    return (directions / variances.mean().sqrt()).half().float().contiguous()
