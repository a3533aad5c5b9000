"""Signals that a question is from elsewhere, larger where it is more so."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.elsewhere.reading import Read
from benchmarks.peers.reading import Rows
from blora.decision.curves import auroc
from blora.decision.temperature import temper
from blora.posterior.decision_head import HeadDraws
from blora.scores import SCORES
from blora.training.head.train import TrainedHead

__all__ = ["FALSE_ALARMS", "found_at", "signals", "told_apart"]

# Share of the test rows beyond the threshold at which foreign rows are counted.
FALSE_ALARMS = 0.05
# The nearest training row that counts (Sun et al., 2022, arXiv:2204.06507).
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
    found["nearest neighbours"] = [_neighbour(rows.train, part) for part in parts]
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


def _neighbour(train: Rows, part: Rows) -> Tensor:
    """Return minus the cosine (N,) of each row's standardised states with its tenth nearest training row."""
    center, scale = train.prompts.mean(0), train.prompts.std(0).clamp_min(1e-6)
    known = normalize((train.prompts - center) / scale, dim=-1)
    asked: Sequence[Tensor] = normalize((part.prompts - center) / scale, dim=-1).split(CHUNK)
    return torch.cat([-(chunk @ known.T).topk(NEIGHBOUR).values[:, -1] for chunk in asked])


def _characters(part: Rows) -> Tensor:
    """Return the logarithm of each question's number of characters, (N,)."""
    return torch.tensor([float(len(row.row.text)) for row in part.rows]).log()
