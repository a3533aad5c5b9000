"""Scoring of questions under draws in steps: layers that the draws share run once, further draws run on demand.

Both parts run in batches of rows of similar length. A row counts once below the layer in which draws begin to differ,
and once per draw from there on.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.inference.batches import PackedBatch, by_length, collate, padded_tokens, spread_states
from blora.inference.fork import branching_layer, runs_in_parts
from blora.inference.packing import PackedRow, States
from blora.inference.prefix import MIN_PREFIX, HeadPrefix, Memory, Prefix, common_tokens
from blora.inference.reading import as_read, head_log_probs, read_prefix, read_rows
from blora.inference.scoring import score_draws, score_rows, states_of
from blora.posterior.decision_head import Features, HeadDraws
from blora.posterior.draws import Draws
from blora.posterior.joined import join

__all__ = ["Branches", "common_prefix", "n_shared", "prefix_of", "score_all"]


class Branches:
    """Rows of one or several adapters, run once up to the layer in which the draws begin to differ.

    Args:
        model: a causal language model whose adapted modules are `LoraLinear`.
        rows: B questions.
        adapters: U adapters with S draws each.
        owner: (B,) the index of each row's adapter.
        prefix: a common prefix of all rows, under the only adapter; None for no prefix.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[PackedRow],
        adapters: Sequence[Draws],
        owner: Sequence[int],
        prefix: Prefix | HeadPrefix | None = None,
    ) -> None:
        self._model = model
        self._n_samples = adapters[0].n_samples
        self._draws = adapters[0] if len(adapters) == 1 else join(adapters)
        self._owner = owner if len(adapters) > 1 else None
        self._prefix = prefix
        self._rows = rows if prefix is None else [row.after(len(prefix.tokens)) for row in rows]
        self._batch = collate(self._rows)
        self._states: States | None = None
        layers = [layer for draws in adapters if (layer := branching_layer(draws)) is not None]
        self._layer = min(layers, default=None)
        if self._layer and runs_in_parts(model):
            shared = self._draws_of(range(len(rows)), 0, 1)
            below = prefix.below if prefix is not None else None
            self._states = states_of(model, self._batch, self._layer, shared, below)

    @torch.no_grad()
    def score(self, picked: Sequence[int], start: int, stop: int, *, max_batch_tokens: int | None = None) -> Tensor:
        """Return log-probabilities over the choices under some of the draws.

        Args:
            picked: indices of the rows.
            start: the first draw.
            stop: the one after the last.
            max_batch_tokens: most padded tokens x draws in a forward pass. Rows that exceed it under all these draws
                are divided among several passes, and a single row that exceeds it by draws. None for one pass.

        Returns:
            (stop - start, len(picked), C) float32, normalised over the choices; -inf for choices that a row lacks.
        """
        rows = [self._rows[row] for row in picked]
        at_once = max_batch_tokens // (stop - start) if max_batch_tokens is not None else None
        if self._layer is None or at_once is None or padded_tokens(rows) <= at_once:
            return self._score_within_limit(picked, start, stop, max_batch_tokens)
        n_choices = max(row.n_choices for row in rows)
        out = torch.full((stop - start, len(rows), n_choices), -torch.inf, device=self._model.device)
        for part in by_length(rows, at_once):
            log_probs = self._score_within_limit([picked[k] for k in part], start, stop, max_batch_tokens)
            out[:, part, : log_probs.shape[-1]] = log_probs
        return out

    def _score_within_limit(self, picked: Sequence[int], start: int, stop: int, max_batch_tokens: int | None) -> Tensor:
        """Score rows in as few passes as the limit allows; return (stop - start, len(picked), C of these rows)."""
        batch, states = self._batch_of(picked)
        if self._layer is None:
            log_probs = score_rows(self._model, batch, self._draws_of(picked, 0, 1), memory=self._memory(0, 1))
            return log_probs[None].expand(stop - start, -1, -1)
        return score_draws(
            self._model,
            batch,
            states,
            lambda first, last: self._draws_of(picked, first, last),
            start=start,
            stop=stop,
            max_batch_tokens=max_batch_tokens,
            memory=self._memory,
        )

    def _memory(self, start: int, stop: int) -> Memory | None:
        """Return the keys and values of the prefix under draws start to stop - 1, or None."""
        return self._prefix.memory(start, stop) if self._prefix is not None else None

    def _batch_of(self, picked: Sequence[int]) -> tuple[PackedBatch, States | None]:
        """Return rows as a batch, and the states that enter the layer in which draws begin to differ."""
        if list(picked) == list(range(len(self._rows))):
            return self._batch, self._states
        if self._states is None:
            return collate([self._rows[row] for row in picked]), None
        rows = spread_states(self._rows, self._states)
        batch = collate([rows[row] for row in picked])
        return batch, batch.states

    def _draws_of(self, picked: Sequence[int], start: int, stop: int) -> Draws:
        """Return draws start to stop - 1 for these rows, draws outermost."""
        if self._owner is None:
            return self._draws.part(start, stop)
        first = torch.tensor([self._n_samples * self._owner[row] for row in picked])
        return self._draws.for_rows((first + torch.arange(start, stop)[:, None]).flatten())


@torch.no_grad()
def score_all(
    model: PreTrainedModel,
    rows: Sequence[PackedRow],
    draws: Draws | HeadDraws | None,
    *,
    max_batch_tokens: int,
    done: Callable[[int], object] = lambda n_rows: None,
    read: Callable[[Sequence[int], Features], object] = lambda places, features: None,
) -> Tensor:
    """Return the log-probabilities of any number of rows, scored in batches of similar length.

    Args:
        model: a causal language model whose adapted modules are `LoraLinear`.
        rows: N >= 1 questions.
        draws: S draws of a LoRA or a head, or None for the base model.
        max_batch_tokens: most padded tokens x draws in a forward pass.
        done: called with the number of rows of each batch once it is scored.
        read: called with the places of rows and the features that a head reads of them.

    Returns:
        (S, N, C) float32 on the CPU, S = 1 without draws; normalised over the choices, -inf for choices that a row does
        not have.
    """
    n_samples = draws.n_samples if draws is not None else 1
    if isinstance(draws, HeadDraws) and any(row.readout == "scores" for row in rows):
        return _score_mixed(model, rows, draws, max_batch_tokens=max_batch_tokens, done=done, read=read)
    prefix = common_prefix(model, rows, draws, max_batch_tokens)
    out = torch.full((n_samples, len(rows), max(row.n_choices for row in rows)), -torch.inf)
    after = rows if prefix is None else [row.after(len(prefix.tokens)) for row in rows]
    for picked in by_length(after, max_batch_tokens):
        batch = [rows[i] for i in picked]
        if draws is None:
            log_probs = score_rows(model, collate(batch), None)[None]
        elif isinstance(draws, HeadDraws):
            assert not isinstance(prefix, Prefix)  # see `prefix_of`
            features = read_rows(model, batch, draws.head.config, draws.lora, prefix)
            read(picked, features)
            log_probs = head_log_probs(draws, batch, features)
        else:
            branches = Branches(model, batch, [draws], [0] * len(batch), prefix)
            log_probs = branches.score(range(len(batch)), 0, n_samples, max_batch_tokens=max_batch_tokens)
        out[:, picked, : log_probs.shape[-1]] = log_probs.cpu()
        done(len(picked))
    return out


def _score_mixed(
    model: PreTrainedModel,
    rows: Sequence[PackedRow],
    draws: HeadDraws,
    *,
    max_batch_tokens: int,
    done: Callable[[int], object],
    read: Callable[[Sequence[int], Features], object],
) -> Tensor:
    """Score rows of a head's adapter of which the language model scores some, alike under every draw."""
    out = torch.full((draws.n_samples, len(rows), max(row.n_choices for row in rows)), -torch.inf)
    by_model = [i for i, row in enumerate(rows) if row.readout == "scores"]
    by_head = [i for i, row in enumerate(rows) if row.readout != "scores"]
    for places, own in ((by_model, draws.lora), (by_head, draws)):
        if places:
            those = [rows[i] for i in places]
            part = score_all(
                model,
                those,
                own,
                max_batch_tokens=max_batch_tokens,
                done=done,
                read=lambda some, features: read([by_head[k] for k in some], features),
            )
            out[:, places, : part.shape[-1]] = part
    if by_model:
        for picked in by_length([rows[i] for i in by_model], max_batch_tokens):
            some = [by_model[k] for k in picked]
            those = [as_read(rows[i], draws.head) for i in some]
            read(some, read_rows(model, those, draws.head.config, draws.lora))
    return out


def common_prefix(
    model: PreTrainedModel, rows: Sequence[PackedRow], draws: Draws | HeadDraws | None, max_batch_tokens: int
) -> Prefix | HeadPrefix | None:
    """Return the common prefix of all rows, if it is long enough to be worth caching."""
    n_tokens = n_shared(model, rows)
    if draws is None or n_tokens == 0:
        return None
    return prefix_of(model, min(rows, key=lambda row: row.n_tokens), n_tokens, draws, max_batch_tokens)


def prefix_of(
    model: PreTrainedModel, row: PackedRow, n_tokens: int, draws: Draws | HeadDraws, max_batch_tokens: int
) -> Prefix | HeadPrefix:
    """Return a cached prefix of a row under draws of a LoRA, or for a head, which reads the whole row."""
    if isinstance(draws, HeadDraws):
        return read_prefix(model, as_read(row, draws.head), n_tokens, draws.head.config, draws.lora)
    return Prefix(model, row.prompt[:n_tokens], draws, max_batch_tokens=max_batch_tokens)


def n_shared(model: PreTrainedModel, rows: Sequence[PackedRow]) -> int:
    """Return the number of tokens that all rows begin with; 0 if it is too small to be worth caching."""
    n_tokens = common_tokens([row.prompt for row in rows])
    return n_tokens if len(rows) > 1 and n_tokens >= MIN_PREFIX and runs_in_parts(model) else 0
