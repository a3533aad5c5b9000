"""Signals that a question is from elsewhere, larger where it is more so."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.elsewhere.reading import Read
from benchmarks.peers.reading import Rows
from blora.decision.curves import auroc
from blora.decision.temperature import temper
from blora.posterior.decision_head import HeadDraws
from blora.scores import SCORES
from blora.training.head.familiarity import N_LOW_DEPTHS
from blora.training.head.train import TrainedHead

__all__ = ["FALSE_ALARMS", "found_at", "signals", "told_apart"]

# Share of the test rows beyond the threshold at which foreign rows are counted.
FALSE_ALARMS = 0.05
# The nearest training row that counts, of the states that Sun et al. (2022, arXiv:2204.06507) read.
NEIGHBOUR = 10
CHUNK = 512


def signals(read: Read, trained: TrainedHead, draws: HeadDraws) -> dict[str, tuple[Tensor, Tensor]]:
    """Return every signal of the test rows (N,) and of the foreign rows (F,), by name.

    Args:
        read: the rows of a set.
        trained: the head that was trained on them.
        draws: draws of the head.
    """
    rows = read.rows
    assert rows.foreign is not None  # every set has foreign rows
    parts = rows.test, rows.foreign
    found: dict[str, list[Tensor]] = {"familiarity": [part.distances(trained.familiarity) for part in parts]}
    probs = [temper(part.under(draws), trained.served.temperature, trained.served.lapse) for part in parts]
    for name, sign in (("confidence", -1), ("predictive_entropy", 1), ("mutual_information", 1)):
        found[name.replace("_", " ")] = [sign * SCORES[name].values(one) for one in probs]
    if rows.train.rows[0].row.readout == "linear":  # the logits of a pointer head have no common zero
        found["energy"] = [-trained.posterior.mean().logits(part.features)[0].logsumexp(-1) for part in parts]
    n_depths = len(rows.config.depths)
    found["neighbours, last layer"] = [_neighbour(rows.train, part, n_depths) for part in parts]
    found["nearest row, lower layers"] = [_nearest(rows.train, part, n_depths) for part in parts]
    found["perplexity"] = [read.test_perplexity, read.foreign_perplexity]
    usual = _characters(rows.train).mean()
    found["characters"] = [(_characters(part) - usual).abs() for part in parts]
    return {name: (test, foreign) for name, (test, foreign) in found.items()}


def told_apart(test: Tensor, foreign: Tensor) -> float:
    """Return the AUROC of a signal for telling foreign rows (F,) from test rows (N,)."""
    found = auroc(torch.cat([test, foreign]).double(), torch.arange(len(test) + len(foreign)) >= len(test))
    assert found is not None  # there are rows of both
    return found


def found_at(test: Tensor, foreign: Tensor) -> float:
    """Return the share of foreign rows beyond the threshold that `FALSE_ALARMS` of the test rows exceed.

    >>> found_at(torch.arange(100.0), torch.tensor([94.0, 96.0]))
    0.5
    """
    threshold = test.double().quantile(1 - FALSE_ALARMS)
    return (foreign.double() > threshold).double().mean().item()


def _neighbour(train: Rows, part: Rows, n_depths: int) -> Tensor:
    """Return the distance (N,) of each row from its tenth nearest training row, in unit states of the last layer."""
    known, asked = (normalize(one.prompts.unflatten(-1, (n_depths, -1))[:, -1], dim=-1) for one in (train, part))
    return _distance(known, asked, NEIGHBOUR)


def _nearest(train: Rows, part: Rows, n_depths: int) -> Tensor:
    """Return the distance (N,) of each row from the nearest training row, in standardised states of lower depths."""
    center, scale = train.prompts.mean(0), train.prompts.std(0).clamp_min(1e-6)
    states = (((one.prompts - center) / scale).unflatten(-1, (n_depths, -1)) for one in (train, part))
    known, asked = (one[:, :N_LOW_DEPTHS].flatten(1) for one in states)
    return _distance(known, asked, 1)


def _distance(known: Tensor, asked: Tensor, k: int) -> Tensor:
    """Return the Euclidean distance (N,) from each row (N, F) to its k-th nearest of the known ones (M, F)."""
    return torch.cat([torch.cdist(chunk, known).topk(k, largest=False).values[:, -1] for chunk in asked.split(CHUNK)])


def _characters(part: Rows) -> Tensor:
    """Return the logarithm of each question's number of characters, (N,)."""
    return torch.tensor([float(len(row.row.text)) for row in part.rows]).log()
