"""A cumulative link on the inputs of a decision head, for labels that are levels.

P(level <= k) = sigmoid(threshold_k - score), with one weight for each input instead of one for each input and level
(the proportional odds model of McCullagh, 1980). Its precisions are chosen as those of the head.
"""

import math
import time
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from benchmarks.peers.figures import Scored
from benchmarks.peers.reading import ReadSet
from blora.decision.temperature import Recalibration
from blora.posterior.decision_head import DecisionHead, Features
from blora.posterior.tf_idf import SparseRows
from blora.training.head.fit import COUNT_PRECISIONS, MOST_STEPS, STATE_PRECISIONS, TOLERANCE, Regression
from blora.training.rows.packed import labels_of
from blora.training.trials import trial_of

__all__ = ["Cumulative", "cumulative_link"]

# The least probability of a level, against log 0.
LEAST = 1e-9


class Cumulative(nn.Module):
    """A cumulative link of C levels on K projected states and M counts.

    Args:
        blank: how the inputs are standardised and projected.
        n_levels: C.
    """

    def __init__(self, blank: DecisionHead, n_levels: int) -> None:
        super().__init__()
        self.blank = blank
        self.weight = nn.Parameter(torch.zeros(len(blank.directions)))
        self.count_weight = nn.Parameter(torch.zeros(len(blank.count_scale)))
        self.lowest = nn.Parameter(torch.full((1,), -1.0))
        self.log_gaps = nn.Parameter(torch.zeros(n_levels - 2))

    def forward(self, z: Tensor, counts: SparseRows) -> Tensor:
        """Return log-probabilities (N, C) from projected states (N, K) and weighted n-grams (N, M)."""
        score = z @ self.weight + counts.times(self.count_weight[:, None])[:, 0]
        thresholds = torch.cat([self.lowest, self.lowest + self.log_gaps.exp().cumsum(0)])
        below = (thresholds - score[:, None]).sigmoid()
        below = torch.cat([torch.zeros_like(below[:, :1]), below, torch.ones_like(below[:, :1])], 1)
        return below.diff(dim=1).clamp_min(LEAST).log()

    @torch.no_grad()
    def of(self, features: Features) -> Tensor:
        """Return log-probabilities (1, N, C) of questions."""
        return self(self.blank.project(features.states), self.blank.weighted(features.grams))[None]

    def fit(self, features: Features, labels: Tensor, on_z: float, on_counts: float) -> "Cumulative":
        """Minimise the cross-entropy plus precision / 2 times the squared norm of the weights."""
        z, counts = self.blank.project(features.states), self.blank.weighted(features.grams)
        optimizer = torch.optim.LBFGS(
            self.parameters(),
            max_iter=MOST_STEPS,
            tolerance_grad=0,
            tolerance_change=TOLERANCE,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            penalty = on_z * self.weight.square().sum() + on_counts * self.count_weight.square().sum()
            found = nll_loss(self(z, counts), labels) + penalty / 2 / len(labels)
            found.backward()
            return found

        optimizer.step(loss)  # type: ignore[arg-type]  # a loss as a tensor is allowed
        return self


def cumulative_link(read: ReadSet) -> Iterator[Scored]:
    """Yield what the cumulative link with the lowest recalibrated validation NLL says."""
    began = time.perf_counter()
    train, validation = read.train, read.validation
    regression = Regression.of(read.config, train.features, train.rows)
    labels, n_levels = labels_of(train.rows), train.rows[0].row.n_choices
    best, least = None, math.inf
    for state_precision, count_precision in product(STATE_PRECISIONS, COUNT_PRECISIONS):
        found = Cumulative(regression.blank, n_levels)
        found.fit(train.features, labels, regression.precision_of(state_precision), count_precision)
        trial = trial_of(0.0, found.of(validation.features), validation.rows)
        if trial.metrics.nll < least:
            best, least = (found, trial), trial.metrics.nll
    assert best is not None
    found, trial = best
    foreign, proof = (found.of(part.features) if part is not None else None for part in (read.foreign, read.proof))
    recalibration = Recalibration(trial.temperature, lapse=trial.lapse)
    seconds = read.seconds + time.perf_counter() - began
    yield Scored("cumulative link", found.of(read.test.features), foreign, recalibration, seconds, proof=proof)
