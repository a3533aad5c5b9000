"""Training rows out of fold, which recalibrate a head where validation rows are few.

A head has fitted its training rows, so its answers to them say nothing about its temperature. The rows are therefore
divided into folds, and each fold is answered by a head that was fitted to the others, as Platt (1999) does for his
sigmoid. With a tenth of a few hundred rows alone, the temperature would be left to chance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from blora.config import HeadConfig
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import Features, HeadDraws
from blora.posterior.noise import generator_of
from blora.training.head.fit import Regression
from blora.training.rows.packed import LabelledRow

__all__ = ["Held", "answers", "folds_of"]

N_FOLDS = 5


class Held(NamedTuple):
    """Rows that a regression has not seen.

    Attributes:
        regression: the regression.
        features: features of the rows.
        rows: the rows.
    """

    regression: Regression
    features: Features
    rows: Sequence[LabelledRow]


def folds_of(config: HeadConfig, features: Features, rows: Sequence[LabelledRow], seed: int) -> list[Held]:
    """Return the folds of training rows, each with the regression on the other folds; rows about one text share a fold.

    Fixed labels are spread evenly. A row is in no fold if all rows with its label are about its text, because no head
    that has not seen the row knows the label.

    Args:
        config: the head's settings.
        features: features of the rows.
        rows: the training rows.
        seed: seed of the random order in which texts are dealt to the folds.
    """
    linear = rows[0].row.readout == "linear"
    outputs = [row.row.outputs[row.label] if linear else 0 for row in rows]
    texts: dict[object, list[int]] = {}
    for i in torch.randperm(len(rows), generator=generator_of(seed)).tolist():
        texts.setdefault(rows[i].text or i, []).append(i)
    dealt = sorted(texts.values(), key=lambda group: outputs[group[0]])
    folds = []
    for k in range(N_FOLDS):
        fold = {i for group in dealt[k::N_FOLDS] for i in group}
        others = [i for i in range(len(rows)) if i not in fold]
        known = {outputs[i] for i in others}
        if answered := [i for i in sorted(fold) if outputs[i] in known]:
            regression = Regression.of(config, features.at(others), [rows[i] for i in others])
            folds.append(Held(regression, features.at(answered), [rows[i] for i in answered]))
    return folds


def answers(held: Sequence[Held], draws: Sequence[HeadDraws]) -> Tensor:
    """Return log-probabilities (S, N, C) of all held rows, each under the draws of its own regression's head.

    Args:
        held: several sets of rows.
        draws: for each set S draws of the head that its regression gave.
    """
    found = [
        head_log_probs(own, [row.row for row in one.rows], one.features) for one, own in zip(held, draws, strict=True)
    ]
    most = max(part.shape[-1] for part in found)
    return torch.cat([F.pad(part, (0, most - part.shape[-1]), value=-torch.inf) for part in found], 1)
