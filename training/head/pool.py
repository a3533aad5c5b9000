"""A linear head as a product: each part of its inputs is fitted by itself, and validation rows say to which power.

A fit to all inputs together explains with the strongest what the weaker ones know too, and learns less of them. In a
product of separate fits, a logarithmic opinion pool, each part keeps what it knows. Its logits are the weighted sum of
those of its parts, so that the product is a linear head like any other. The powers have the lowest NLL on the
validation rows, a convex problem, and are not negative. Where these rows are few, training rows out of fold help them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import pad

from blora.config import HeadConfig
from blora.decision.temperature import FEW_ROWS
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import DecisionHead, Features
from blora.posterior.draws import Draws
from blora.training.head.crossfit import Held, folds_of
from blora.training.head.fit import OFF, FittedHead, Precisions, Regression, beside_blas, fit_head
from blora.training.head.inputs import HeadInputs
from blora.training.rows.packed import LabelledRow, labels_of
from blora.training.trials import trial_of

__all__ = ["Pooled", "pool"]

# The part of the counts, whose regression is the first of the states.
COUNTS = "counts"
# Largest power of a part, and the least one that counts.
MOST_POWER, LEAST_POWER = 10.0, 1e-3


@dataclass(frozen=True, slots=True)
class Pooled:
    """A product of parts, and the parts.

    Attributes:
        parts: the fit of each part by its name: `counts`, `states`, and `companion` if the head reads one.
        powers: the power of each part.
        whole: the product, with the Laplace approximation's deviations at its weights.
    """

    parts: dict[str, FittedHead]
    powers: dict[str, float]
    whole: FittedHead

    def again(self, config: HeadConfig, features: Features, rows: Sequence[LabelledRow]) -> DecisionHead:
        """Return the product that other rows give, at the same precisions and powers."""
        regressions = _regressions(config, features, rows)
        precisions = {name: fitted.precisions for name, fitted in self.parts.items()}
        return _joined(config, regressions, _solved(regressions, precisions), precisions, self.powers)


def pool(
    config: HeadConfig,
    features: Features,
    rows: Sequence[LabelledRow],
    validation: Features,
    validation_rows: Sequence[LabelledRow],
    lora: Draws,
    seed: int | None,
) -> Pooled:
    """Return the product of the parts of a linear head, each at its best precision.

    Args:
        config: the head's settings.
        features: features of the training rows.
        rows: the training rows.
        validation: features of the validation rows, which choose precisions and powers.
        validation_rows: the validation rows.
        lora: the LoRA below the head, for the validation.
        seed: seed of the folds that help fewer than `FEW_ROWS` validation rows; None where no row is out of fold.
    """
    regressions = _regressions(config, features, rows)
    parts: dict[str, FittedHead] = {}
    held: dict[str, list[Held]] = {}
    for name in (COUNTS, *regressions):
        regression = regressions.get(name, regressions["states"])
        own = _part(validation, config, name)
        parts[name] = fit_head(regression, own, validation_rows, lora, COUNTS if name == COUNTS else "states")
        held[name] = [Held(parts[name].head, own, validation_rows)]
        if seed is not None and len(validation_rows) < FEW_ROWS:

            def again(few: Features, those: Sequence[LabelledRow], name: str = name) -> DecisionHead:
                return _solved(_regressions(config, few, those), {name: parts[name].precisions})[name]

            folds = folds_of(again, features, rows, seed)
            held[name] += [fold._replace(features=_part(fold.features, config, name)) for fold in folds]
    labels = torch.cat([labels_of(one.rows) for one in held[COUNTS]])
    powers = dict(zip(parts, _powers([_means(own, lora) for own in held.values()], labels), strict=True))
    heads, precisions = ({name: getattr(one, what) for name, one in parts.items()} for what in ("head", "precisions"))
    head = _joined(config, regressions, heads, precisions, powers)
    found = head_log_probs(head.mean(lora), [row.row for row in validation_rows], validation)
    whole = FittedHead(head, _of_product(precisions, powers), trial_of(0.0, found, validation_rows))
    return Pooled(parts, powers, whole)


def _means(held: Sequence[Held], lora: Draws) -> Tensor:
    """Return log-probabilities (N, C) of rows under the posterior means of the heads that have not seen them."""
    found = [head_log_probs(one.head.mean(lora), [row.row for row in one.rows], one.features)[0] for one in held]
    most = max(part.shape[-1] for part in found)
    return torch.cat([pad(part, (0, most - part.shape[-1]), value=-torch.inf) for part in found])


def _solved(regressions: Mapping[str, Regression], precisions: Mapping[str, Precisions]) -> dict[str, DecisionHead]:
    """Return the fit of each part at its precisions."""
    return {name: regressions.get(name, regressions["states"]).solve(*own, None) for name, own in precisions.items()}


def _of_product(precisions: Mapping[str, Precisions], powers: Mapping[str, float]) -> Precisions:
    """Return the prior precisions of the weights of states and counts in a product."""
    of_states, of_counts = precisions["states"][0], precisions[COUNTS][1]
    return _to_power(of_states, powers["states"]), _to_power(of_counts, powers[COUNTS]), OFF


def _to_power(precision: float, power: float) -> float:
    """Return the prior precision of a part's weights times its power."""
    return precision / max(power, LEAST_POWER) ** 2


def _regressions(config: HeadConfig, features: Features, rows: Sequence[LabelledRow]) -> dict[str, Regression]:
    """Return the regression on the states of each model; the base model's has the counts too."""
    settings = {"states": replace(config, n_states=config.n_base_states, companion=None)}
    if (companion := config.companion) is not None:
        settings["companion"] = replace(
            config, depths=companion.depths, n_states=companion.n_states, n_grams=0, companion=None
        )
    return {name: Regression.of(own, _part(features, config, name), rows) for name, own in settings.items()}


def _part(features: Features, config: HeadConfig, name: str) -> Features:
    """Return what a part reads of the features of a head."""
    n_base = config.n_base_states
    if name == "companion":
        return replace(features, states=features.states[:, n_base:], counts=features.counts[:, :0])
    return replace(features, states=features.states[:, :n_base])


def _powers(log_probs: Sequence[Tensor], labels: Tensor) -> list[float]:
    """Return the powers of log-probabilities (N, C) whose normalised product has the lowest NLL of labels (N,).

    A Gaussian prior about equal powers, which weighs as much as one row, keeps those of very few rows finite.
    """
    of_parts = torch.stack([part.clamp_min(-1e4) for part in log_probs]).double()  # a choice that a row lacks
    of_label = of_parts[:, torch.arange(len(labels)), labels]

    start = np.full(len(log_probs), 1 / len(log_probs))

    def loss(powers: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = torch.einsum("p,pnc->nc", torch.from_numpy(powers), of_parts)
        nll = logits.logsumexp(-1) - torch.from_numpy(powers) @ of_label
        slope = torch.einsum("nc,pnc->p", logits.softmax(-1), of_parts) - of_label.sum(-1)
        away = powers - start
        total, gradient = float(nll.sum()) + float(away @ away) / 2, slope.numpy() + away
        return total / len(labels), gradient / len(labels)

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, MOST_POWER)] * len(start))
    return [float(power) for power in found.x]


@beside_blas()
def _joined(
    config: HeadConfig,
    regressions: Mapping[str, Regression],
    heads: Mapping[str, DecisionHead],
    precisions: Mapping[str, Precisions],
    powers: Mapping[str, float],
) -> DecisionHead:
    """Return the product of heads to some powers as one head, with deviations at its weights."""
    blocks = [heads[name] for name in regressions]
    weight = torch.cat([powers[name] * heads[name].weight for name in regressions])
    count_weight = powers[COUNTS] * heads[COUNTS].count_weight
    bias = torch.stack([power * heads[name].bias for name, power in powers.items()]).sum(0)
    z = np.concatenate([regression.z for regression in regressions.values()], 1)
    inputs = HeadInputs(z, regressions["states"].counts, None, np.zeros((0, 0), "f"), 0)
    no_products = np.zeros((0, weight.shape[1]), "f")
    logits = inputs.logits([weight.numpy(), no_products, count_weight.numpy(), bias[None].numpy()])
    curvature, basis, fisher = inputs.curvature(inputs.probabilities(logits))
    of_weights = [
        np.full(len(heads[name].weight), _to_power(one.precision_of(precisions[name][0]), powers[name]))
        for name, one in regressions.items()
    ]
    deviation = 1 / np.sqrt(np.outer(curvature, fisher) + np.concatenate(of_weights)[:, None])
    return DecisionHead(
        replace(config, n_directions=len(weight)),
        center=torch.cat([head.center for head in blocks]),
        scale=torch.cat([head.scale for head in blocks]),
        directions=torch.block_diag(*[head.directions for head in blocks]),
        count_scale=heads[COUNTS].count_scale,
        weight=weight,
        deviation=torch.from_numpy(np.ascontiguousarray(deviation, "f")),
        basis=torch.from_numpy(np.ascontiguousarray(basis, "f")),
        count_weight=count_weight,
        bias=bias,
    )
