"""A linear head as a product: its inputs are fitted part by part and all together, and validation rows choose powers.

A fit to all inputs together explains with the strongest what the weaker ones know too, and learns less of them. In a
product of fits, a logarithmic opinion pool, each part keeps what it knows, and the fit to all of them knows what they
mean together. The logits of a product are the weighted sum of those of its factors, so that it is a linear head like
any other. The powers, which are not negative, have the lowest NLL on the validation rows beside a prior that weighs as
much as one of them: a convex problem. Where these rows are few, training rows out of fold help them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import pad

from blora.config import HeadConfig
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import DecisionHead, Features
from blora.posterior.draws import Draws
from blora.training.head.crossfit import Held, helping_folds
from blora.training.head.fit import OFF, FittedHead, Precisions, Regression, beside_blas, fit_head
from blora.training.head.inputs import HeadInputs, Vector
from blora.training.rows.packed import LabelledRow, labels_of
from blora.training.trials import trial_of

__all__ = ["Pooled", "pool"]

# The parts: the counts, the states of the base model, those of a companion, and the fit to all of them together.
COUNTS, STATES, COMPANION, JOINT = "counts", "states", "companion", "joint"
# Largest power of a factor, and the least one that counts.
MOST_POWER, LEAST_POWER = 10.0, 1e-3


@dataclass(frozen=True, slots=True)
class Pooled:
    """A product, and its factors.

    Attributes:
        factors: the fit of each part by its name, as a head whose weights of the other inputs are zero: `counts`,
            `states`, `companion` if the head reads one, and `joint`.
        powers: the power of each factor.
        whole: the product, with the Laplace approximation's deviations at its weights.
        folds: training rows that helped few validation rows out, each fold with the product of the fits to the others.
    """

    factors: dict[str, FittedHead]
    powers: dict[str, float]
    whole: FittedHead
    folds: list[Held]

    @beside_blas()
    def again(self, config: HeadConfig, features: Features, rows: Sequence[LabelledRow]) -> DecisionHead:
        """Return the product that other rows give, at the same precisions and powers."""
        precisions = {name: fitted.precisions for name, fitted in self.factors.items()}
        parts = _Parts.of(config, features, rows)
        return parts.product(parts.solved(precisions), precisions, self.powers)


@beside_blas()
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
        seed: seed of the folds that help few validation rows, as for `helping_folds`.
    """
    parts = _Parts.of(config, features, rows)
    alone: dict[str, FittedHead] = {}
    for name in (COUNTS, *parts.regressions):
        own, kind = _part(validation, config, name), COUNTS if name == COUNTS else STATES
        alone[name] = fit_head(parts.regression(name), own, validation_rows, lora, kind)
    precisions = {name: one.precisions for name, one in alone.items()}
    precisions[JOINT] = precisions[STATES][0], precisions[COUNTS][1], OFF
    heads = parts.on_all({name: one.head for name, one in alone.items()}, precisions)
    of_folds: list[tuple[_Parts, dict[str, DecisionHead]]] = []

    def again(few: Features, those: Sequence[LabelledRow]) -> DecisionHead:
        of_fold = _Parts.of(config, few, those)
        solved = of_fold.solved(precisions)
        of_folds.append((of_fold, solved))
        return solved[JOINT]

    folds = helping_folds(again, features, rows, len(validation_rows), seed)
    held = {
        name: [
            Held(head, validation, validation_rows),
            *(fold._replace(head=solved[name]) for fold, (_, solved) in zip(folds, of_folds, strict=True)),
        ]
        for name, head in heads.items()
    }
    labels = torch.cat([labels_of(one.rows) for one in held[COUNTS]])
    powers = dict(zip(heads, _powers([_means(own, lora) for own in held.values()], labels), strict=True))
    folds = [
        fold._replace(head=of_fold.product(solved, precisions, powers))
        for fold, (of_fold, solved) in zip(folds, of_folds, strict=True)
    ]

    def fitted(head: DecisionHead, at: Precisions) -> FittedHead:
        found = head_log_probs(head.mean(lora), [row.row for row in validation_rows], validation)
        return FittedHead(head, at, trial_of(0.0, found, validation_rows))

    factors = {name: fitted(head, precisions[name]) for name, head in heads.items()}
    of_product = _of_product(precisions, powers)
    at = of_product[STATES][0], of_product[COUNTS][1], OFF
    return Pooled(factors, powers, fitted(parts.product(heads, precisions, powers), at), folds)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The regressions of labelled rows on parts of a head's inputs.

    Attributes:
        regressions: those on the states of each model; the base model's has the counts too.
        whole: the one on all inputs.
    """

    regressions: dict[str, Regression]
    whole: Regression

    @classmethod
    def of(cls, config: HeadConfig, features: Features, rows: Sequence[LabelledRow]) -> "_Parts":
        settings = {STATES: replace(config, n_states=config.n_base_states, companion=None)}
        if (companion := config.companion) is not None:
            own = replace(config, depths=companion.depths, n_states=companion.n_states, n_grams=0, companion=None)
            settings[COMPANION] = own
        found = {name: Regression.of(own, _part(features, config, name), rows) for name, own in settings.items()}
        first, blanks = found[STATES], [regression.blank for regression in found.values()]
        first.check_told_apart()
        n_directions = sum(len(blank.directions) for blank in blanks)
        blank = replace(
            first.blank,
            config=replace(config, n_directions=n_directions, n_grams=len(first.blank.grams)),
            center=torch.cat([blank.center for blank in blanks]),
            scale=torch.cat([blank.scale for blank in blanks]),
            directions=torch.block_diag(*[blank.directions for blank in blanks]),
            weight=torch.cat([blank.weight for blank in blanks]),
            deviation=torch.cat([blank.deviation for blank in blanks]),
        )
        return cls(found, replace(first, blank=blank, z=np.concatenate([one.z for one in found.values()], 1)))

    def regression(self, name: str) -> Regression:
        """Return the regression that has the inputs of a part."""
        return self.regressions.get(name, self.regressions[STATES])

    def solved(self, precisions: Mapping[str, Precisions]) -> dict[str, DecisionHead]:
        """Return the fit of each part at its precisions, as a head on all inputs."""
        alone = {name: self.regression(name).solve(*own, None) for name, own in precisions.items() if name != JOINT}
        return self.on_all(alone, precisions)

    def on_all(
        self, alone: Mapping[str, DecisionHead], precisions: Mapping[str, Precisions]
    ) -> dict[str, DecisionHead]:
        """Return the fit of each part, and the one to all of them together, as heads on all inputs."""
        return {name: self._on_all(name, head) for name, head in alone.items()} | {JOINT: self._joint(precisions)}

    def product(
        self, heads: Mapping[str, DecisionHead], precisions: Mapping[str, Precisions], powers: Mapping[str, float]
    ) -> DecisionHead:
        """Return the product of heads on all inputs to some powers as one head, with deviations at its weights."""
        weight, count_weight, bias = (
            torch.stack([powers[name] * getattr(head, what) for name, head in heads.items()]).sum(0)
            for what in ("weight", "count_weight", "bias")
        )
        none = np.zeros((0, 0), "f")
        inputs = HeadInputs(self.whole.z, self.whole.counts, None, none, 0)
        logits = inputs.logits([weight.numpy(), none, count_weight.numpy(), bias[None].numpy()])
        curvature, basis, fisher = inputs.curvature(inputs.probabilities(logits))
        of_weights = self._of_states(_of_product(precisions, powers))
        deviation = 1 / np.sqrt(np.outer(curvature, fisher) + of_weights[:, None])
        return replace(
            self.whole.blank,
            weight=weight,
            deviation=torch.from_numpy(np.ascontiguousarray(deviation, "f")),
            basis=torch.from_numpy(np.ascontiguousarray(basis, "f")),
            count_weight=count_weight,
            bias=bias,
        )

    def _on_all(self, name: str, head: DecisionHead) -> DecisionHead:
        """Return the fit of a part as a head on all inputs."""
        weight, count_weight = torch.zeros_like(self.whole.blank.weight), self.whole.blank.count_weight
        if name == COMPANION:
            weight[-len(head.weight) :] = head.weight
        else:
            weight[: len(head.weight)], count_weight = head.weight, head.count_weight
        return replace(self.whole.blank, weight=weight, count_weight=count_weight, bias=head.bias)

    def _joint(self, precisions: Mapping[str, Precisions]) -> DecisionHead:
        """Return the fit to all inputs together, at the precision of each part."""
        of_states, blank = self._of_states(precisions), self.whole.blank
        units = np.sqrt(of_states[0] / of_states).astype("f")  # in which all states have one precision
        of_state = float(of_states[0]) * len(blank.center) / len(blank.directions)
        head = replace(self.whole, z=self.whole.z * units).solve(of_state, precisions[COUNTS][1], OFF, None)
        return replace(head, weight=head.weight * torch.from_numpy(units)[:, None])

    def _of_states(self, precisions: Mapping[str, Precisions]) -> Vector:
        """Return the prior precision (K,) of the weights of each projected state."""
        return np.concatenate(
            [
                np.full(len(one.blank.directions), one.precision_of(precisions[name][0]))
                for name, one in self.regressions.items()
            ]
        )


def _of_product(precisions: Mapping[str, Precisions], powers: Mapping[str, float]) -> dict[str, Precisions]:
    """Return the prior precisions of each part's weights in a product, where the joint fit has some too."""
    power = {name: max(powers[name] + powers[JOINT], LEAST_POWER) for name in precisions if name != JOINT}
    return {name: (precisions[name][0] / one**2, precisions[name][1] / one**2, OFF) for name, one in power.items()}


def _part(features: Features, config: HeadConfig, name: str) -> Features:
    """Return what a part reads of the features of a head."""
    n_base = config.n_base_states
    if name == COMPANION:
        return replace(features, states=features.states[:, n_base:], grams=())
    return replace(features, states=features.states[:, :n_base])


def _means(held: Sequence[Held], lora: Draws) -> Tensor:
    """Return log-probabilities (N, C) of rows under the posterior means of the heads that have not seen them."""
    found = [head_log_probs(one.head.mean(lora), [row.row for row in one.rows], one.features)[0] for one in held]
    most = max(part.shape[-1] for part in found)
    return torch.cat([pad(part, (0, most - part.shape[-1]), value=-torch.inf) for part in found])


def _powers(log_probs: Sequence[Tensor], labels: Tensor) -> list[float]:
    """Return the powers of log-probabilities (N, C) whose normalised product has the lowest NLL of labels (N,).

    A Gaussian prior about equal powers, which weighs as much as one row, keeps those of very few rows finite.
    """
    of_factors = torch.stack([one.clamp_min(-1e4) for one in log_probs]).double()  # a choice that a row lacks
    of_label = of_factors[:, torch.arange(len(labels)), labels]

    start = np.full(len(log_probs), 1 / len(log_probs))

    def loss(powers: Vector) -> tuple[float, Vector]:
        logits = torch.einsum("p,pnc->nc", torch.from_numpy(powers), of_factors)
        nll = logits.logsumexp(-1) - torch.from_numpy(powers) @ of_label
        slope = torch.einsum("nc,pnc->p", logits.softmax(-1), of_factors) - of_label.sum(-1)
        away = powers - start
        total, gradient = float(nll.sum()) + float(away @ away) / 2, slope.numpy() + away
        return total / len(labels), gradient / len(labels)

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, MOST_POWER)] * len(start))
    return [float(power) for power in found.x]
