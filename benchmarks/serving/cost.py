"""What an answer should cost: floating-point operations of trunk, branches and head, at speeds measured apart."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from transformers import PreTrainedModel

from blora.base_model import BaseModel
from blora.inference.batches import by_length, collate, padded_tokens
from blora.inference.fork import branching_layer, hidden_at
from blora.inference.packing import PackedRow
from blora.inference.scoring import at_positions, states_of
from blora.inference.vocabulary import N_KEPT, STRIDE, log_probs_along_draws, plain_head
from blora.posterior.draws import Draws, use_draws
from blora.posterior.inject import layer_index, linear_modules

__all__ = ["Speeds", "Work", "measure_speeds", "work_of"]

REPEATS = 5
# What the last layer computes at every position; the rest of it only at those that the head sees.
EVERYWHERE = ("k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of some questions.

    Attributes:
        trunk: below the layer in which draws begin to differ.
        branches: the layers above it, of all draws.
        head: sums over the vocabulary.
    """

    trunk: float
    branches: float
    head: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.trunk + self.branches + self.head


@dataclass(frozen=True, slots=True)
class Speeds:
    """Floating-point operations a second of each part, measured alone."""

    trunk: float
    branches: float
    head: float

    def seconds(self, work: Work) -> float:
        """How long that takes."""
        return work.trunk / self.trunk + work.branches / self.branches + work.head / self.head


def work_of(model: PreTrainedModel, rows: Sequence[PackedRow], fork: int, n_samples: int, max_tokens: int) -> Work:
    """Return our engine's probabilities for questions in batches by length.

    Args:
        model: a Llama-like model, for its shapes.
        rows: the questions.
        fork: the layer in which draws begin to differ.
        n_samples: S.
        max_tokens: padded tokens of a batch, and tokens times draws of a pass.
    """
    n_layers = model.config.num_hidden_layers
    shapes = {name: shape for name, shape in linear_modules(model).items() if layer_index(name) == n_layers - 1}
    everywhere = sum(a * b for name, (a, b) in shapes.items() if name.endswith(EVERYWHERE))
    weights = sum(a * b for a, b in shapes.values())
    hidden, vocabulary = model.config.hidden_size, model.config.vocab_size

    def layers(batch: Sequence[PackedRow], count: int) -> float:
        tokens = padded_tokens(batch)
        return count * (2 * weights * tokens + 4 * hidden * tokens * tokens / len(batch))

    trunk = branches = head = 0.0
    for picked in by_length(rows, max_tokens):
        trunk += layers([rows[b] for b in picked], fork)
    for picked in by_length(rows, max(1, max_tokens // n_samples)):
        batch = [rows[b] for b in picked]
        tokens, positions = padded_tokens(batch), _positions(batch)
        narrowed = 2 * everywhere * tokens + 2 * (weights - everywhere) * positions
        attention = 4 * hidden * tokens * tokens / len(batch)
        branches += n_samples * (layers(batch, n_layers - fork - 1) + narrowed + attention)
    for row in rows:
        head += 2 * hidden * _positions([row]) * (vocabulary + n_samples * (N_KEPT + vocabulary // STRIDE))
    return Work(trunk, branches, head)


def measure_speeds(base: BaseModel, draws: Draws, rows: Sequence[PackedRow], max_tokens: int) -> Speeds:
    """How fast the trunk runs alone, then what lies above it under all the draws, then the sums over the vocabulary."""
    fork, n_samples = branching_layer(draws), draws.n_samples
    assert fork is not None  # the draws differ
    batches = [collate([rows[b] for b in picked]) for picked in by_length(rows, max_tokens)]
    work = work_of(base.model, rows, fork, n_samples, max_tokens)
    small = [collate([rows[b] for b in picked]) for picked in by_length(rows, max_tokens // n_samples)]
    states = [states_of(base.model, batch, fork, draws) for batch in small]

    def trunk() -> None:
        for batch in batches:
            states_of(base.model, batch, fork, draws)

    def branches() -> None:
        with use_draws(draws):
            for batch, known in zip(small, states, strict=True):
                at_positions(hidden_at, base.model, batch, known, n_samples)

    head = plain_head(base.model)
    assert head is not None  # of the embedded model
    with torch.no_grad(), use_draws(draws):
        hidden = at_positions(hidden_at, base.model, small[0], states[0], n_samples).float()
    place = torch.arange(hidden.shape[1])

    def sums() -> None:
        log_probs_along_draws(head, hidden, place, place)

    per_position = work.head / sum(_positions([row]) for row in rows)
    return Speeds(
        work.trunk / _seconds(trunk), work.branches / _seconds(branches), len(place) * per_position / _seconds(sums)
    )


def _positions(rows: Sequence[PackedRow]) -> int:
    """At which the head predicts something, padded to those of the row that has most."""
    return len(rows) * max(1 + row.scored_tokens - row.n_choices for row in rows)


@torch.inference_mode()
def _seconds(work: Callable[[], None]) -> float:
    work()
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found)
