"""Training rows out of fold, which recalibrate a head where validation rows are few.

A head has fitted its training rows, so its answers to them say nothing about its temperature. The rows are therefore
divided into folds, and each fold is answered by a head that was fitted to the others, as Platt (1999) does for his
sigmoid. With a tenth of a few hundred rows alone, the temperature would be left to chance.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from blora.config import SamplingConfig
from blora.decision.temperature import FEW_ROWS
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import DecisionHead, Features, HeadPosterior
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.rows.packed import LabelledRow
from blora.training.trials import Trial, trial_of

__all__ = ["Held", "Refit", "folds_of", "helping_folds", "recalibrated"]

# What fits a head to the features of rows and these rows.
Refit = Callable[[Features, Sequence[LabelledRow]], DecisionHead]

N_FOLDS = 5
# With fewer texts a head that has not seen a fifth of them is another head.
LEAST_TEXTS = 20


class Held(NamedTuple):
    """Rows that a head has not been fitted to.

    Attributes:
        head: the head, with the deviations of its Laplace approximation.
        features: features of the rows.
        rows: the rows.
    """

    head: DecisionHead
    features: Features
    rows: Sequence[LabelledRow]

    def log_probs(self, scale: float, lora: Posterior, sampling: SamplingConfig) -> Tensor:
        """Return log-probabilities (S, N, C) of the rows under draws of the head's posterior.

        Args:
            scale: factor on the deviations.
            lora: the LoRA below the head.
            sampling: number and seed of the draws.
        """
        posterior = HeadPosterior(self.head.widen(scale), lora)
        draws = posterior.sample(sampling.n_samples, generator_of(sampling.seed))
        return head_log_probs(draws, [row.row for row in self.rows], self.features)


def folds_of(again: Refit, features: Features, rows: Sequence[LabelledRow], seed: int) -> list[Held]:
    """Return the folds of training rows, each with a head fitted to the other folds; rows about one text share a fold.

    Fixed labels are spread evenly. A row is in no fold if all rows with its label are about its text, because no head
    that has not seen the row knows the label. Rows about fewer than `LEAST_TEXTS` texts have no folds.

    Args:
        again: fits a head to rows.
        features: features of the rows.
        rows: the training rows.
        seed: seed of the random order in which texts are dealt to the folds.
    """
    linear = rows[0].row.readout == "linear"
    outputs = [row.row.outputs[row.label] if linear else 0 for row in rows]
    texts: dict[object, list[int]] = {}
    for i in torch.randperm(len(rows), generator=generator_of(seed)).tolist():
        texts.setdefault(rows[i].text or i, []).append(i)
    if len(texts) < LEAST_TEXTS:
        return []
    dealt = sorted(texts.values(), key=lambda group: outputs[group[0]])
    folds = []
    for k in range(N_FOLDS):
        fold = {i for group in dealt[k::N_FOLDS] for i in group}
        others = [i for i in range(len(rows)) if i not in fold]
        known = {outputs[i] for i in others}
        if answered := [i for i in sorted(fold) if outputs[i] in known]:
            head = again(features.at(others), [rows[i] for i in others])
            folds.append(Held(head, features.at(answered), [rows[i] for i in answered]))
    return folds


def helping_folds(
    again: Refit, features: Features, rows: Sequence[LabelledRow], n_validation: int, seed: int | None
) -> list[Held]:
    """Return the folds of training rows that help validation rows out, none where there are at least `FEW_ROWS`.

    Args:
        again: fits a head to rows.
        features: features of the training rows.
        rows: the training rows.
        n_validation: number of validation rows.
        seed: as for `folds_of`; None where no training row is out of fold.
    """
    return folds_of(again, features, rows, seed) if seed is not None and n_validation < FEW_ROWS else []


def recalibrated(scale: float, held: Sequence[Held], lora: Posterior, sampling: SamplingConfig) -> Trial:
    """Return the trial of a scale that is recalibrated on several sets of rows, with the metrics of the first set.

    Args:
        scale: factor on the deviations of every head.
        held: the sets, each with its head.
        lora: the LoRA below the heads.
        sampling: number and seed of the draws.
    """
    found = [one.log_probs(scale, lora, sampling) for one in held]
    most = max(part.shape[-1] for part in found)
    log_probs = torch.cat([F.pad(part, (0, most - part.shape[-1]), value=-torch.inf) for part in found], 1)
    return trial_of(scale, log_probs, [row for one in held for row in one.rows], len(held[0].rows))
