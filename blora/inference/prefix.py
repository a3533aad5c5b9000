"""Caching of a prefix that many prompts share: a system message, a list of examples, instructions.

Attention reads only the keys and values of earlier tokens, which do not depend on later tokens. So the keys and values
of a shared prefix are cached: once below the layer in which draws begin to differ, and once per draw from there on.
Rows then contain only the tokens after the prefix.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from blora.inference.checkpoints import checkpoint
from blora.inference.fork import branching_layer, hidden_at, states_at
from blora.inference.packing import PackedRow, States
from blora.inference.windows import with_each, with_window
from blora.posterior.decision_head import Features
from blora.posterior.draws import Draws, use_draws
from blora.posterior.inject import n_layers_of

__all__ = ["MIN_PREFIX", "HeadPrefix", "Memory", "Prefix", "RecordingCache", "common_tokens"]

KeysValues = tuple[Tensor, Tensor]
Layers = dict[int, KeysValues]

# Shortest prefix worth caching, in tokens.
MIN_PREFIX = 32


@dataclass(frozen=True, slots=True)
class Memory:
    """Cached keys and values of p tokens before every row of a forward pass.

    Attributes:
        layers: keys and values of each decoder layer, both (K, heads, p, head size): K = 1 for all rows, or K draws,
            each for an equal share of the rows, draws outermost.
    """

    layers: Mapping[int, KeysValues]

    def cache(self) -> DynamicCache:
        """Return a cache for one forward pass that prepends the cached keys and values and keeps no new ones."""
        return _PrefixedCache(self.layers)


class Prefix:
    """Cached prefix under the draws of one adapter; draws are computed on demand.

    Args:
        model: a causal language model whose adapted modules are `LoraLinear`.
        tokens: p token ids.
        draws: draws of the adapter; None for the base model.
        max_batch_tokens: most tokens x draws in a forward pass; None for no limit.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Sequence[int],
        draws: Draws | None,
        *,
        max_batch_tokens: int | None = None,
    ) -> None:
        self.tokens = tuple(tokens)
        self._model = model
        self._draws = draws
        self._at_once = max(1, max_batch_tokens // len(tokens)) if max_batch_tokens is not None else None
        self._states: States | None = None
        self._made = 0  # number of draws in `_above`
        self._above: Layers = {}
        self._below: Layers = {}
        layer = branching_layer(draws) if draws is not None else None
        self._branches = layer is not None
        if layer != 0:
            record = RecordingCache()
            with use_draws(draws.first(1) if draws is not None else None):
                if layer is None:
                    self._run_to_head(record, None, 1)
                else:
                    found = states_at(model, [layer], **self._inputs(1), cache=record)
                    self._states = States(layer, found[layer])
            self._below = record.kept

    def n_bytes(self, n_samples: int) -> int:
        """Return the memory of the prefix with `n_samples` draws, in bytes."""
        one = self.memory(0, 1).layers if self._branches else {}
        above = sum(_size(pair) for layer, pair in one.items() if layer not in self._below)
        return sum(map(_size, self._below.values())) + n_samples * above

    @property
    def below(self) -> Memory:
        """Return the cached keys and values of the layers below the first in which draws differ."""
        return Memory(self._below)

    @torch.no_grad()
    def memory(self, start: int, stop: int) -> Memory:
        """Return the cached keys and values under draws start to stop - 1."""
        above = {}
        if self._branches:
            while self._made < stop:
                checkpoint()
                self._extend(min(stop, self._made + self._at_once) if self._at_once is not None else stop)
            above = {layer: (keys[start:stop], values[start:stop]) for layer, (keys, values) in self._above.items()}
        return Memory({**self._below, **above})

    def _extend(self, stop: int) -> None:
        """Compute draws up to stop - 1; another run may have computed some at a checkpoint: see `checkpoints`."""
        assert self._draws is not None  # without draws no layer differs
        start = self._made
        if start >= stop:
            return
        record, repeats = RecordingCache(), stop - start
        known = self._states
        if known is not None:
            known = States(known.layer, known.values.expand(repeats, -1, -1))
        with use_draws(self._draws.part(start, stop)):
            self._run_to_head(record, known, repeats)
        if self._made != start:
            return
        before = self._above
        above = {layer: _concatenate(before[layer], pair, 0) if before else pair for layer, pair in record.kept.items()}
        self._above, self._made = above, stop  # both or, if the memory runs out, neither

    def _run_to_head(self, record: "RecordingCache", known: States | None, repeats: int) -> None:
        """Run every layer from known states on; of the last layer's output only one position per row is computed."""
        row = torch.arange(repeats, device=self._model.device)
        hidden_at(self._model, known, row, torch.zeros_like(row), **self._inputs(repeats), cache=record)

    def _inputs(self, repeats: int) -> dict[str, Any]:
        ids = torch.tensor([self.tokens], device=self._model.device).expand(repeats, -1)
        positions = torch.arange(ids.shape[1])[None]
        hidden = torch.full((ids.shape[1],) * 2, torch.finfo(torch.float32).min, device=ids.device).triu(1)
        masks = with_window(self._model, hidden[None, None], positions)
        return {
            "input_ids": ids,
            "position_ids": positions.to(ids.device).expand(repeats, -1),
            "attention_mask": with_each(masks, lambda mask: mask.expand(repeats, -1, -1, -1)),
        }


class HeadPrefix:
    """Cached prefix of the rows that a head reads; no draw of a head changes its keys and values.

    The prefix is part of a row that was read as a whole, so that this row is not read again. Only the language model's
    own scores need layers above the deepest states of the head: these are computed once a row is scored.

    Args:
        model: a causal language model.
        lora: the LoRA below the head, as one draw.
        row: the row.
        n_tokens: p, the length of the prefix: that many of the first tokens of the row's prompt.
        depth: number of decoder layers that have run, from the lowest on.
        layers: their keys and values of the row's T tokens, both (1, heads, T, head size).
        sums: (F,) float32 sums over the prefix of the states at the head's depths, side by side.
        features: features of the row.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        lora: Draws,
        row: PackedRow,
        n_tokens: int,
        depth: int,
        layers: Layers,
        sums: Tensor,
        features: Features,
    ) -> None:
        self._model = model
        self._lora = lora
        self._depth = depth
        self.tokens = row.prompt[:n_tokens]
        self.sums = sums
        self.below = Memory(
            {
                layer: (keys[:, :, :n_tokens].clone(), values[:, :, :n_tokens].clone())
                for layer, (keys, values) in layers.items()
            }
        )
        self._read: tuple[Hashable, Features] | None = (row.read_key, features)

    def n_bytes(self, n_samples: int) -> int:
        """Return the memory of the prefix with all layers, in bytes, for any number of draws."""
        features = self._read[1] if self._read is not None else None
        read = _size((features.states, features.counts, *features.grams)) if features is not None else 0
        return sum(map(_size, self.below.layers.values())) * n_layers_of(self._model) // self._depth + read

    def memory(self, start: int, stop: int) -> Memory:
        """Return the cached keys and values of all layers, for any draws."""
        if self._depth < n_layers_of(self._model):
            whole = Prefix(self._model, self.tokens, self._lora).memory(0, 1)
            self.below, self._depth = whole, n_layers_of(self._model)
        return self.below

    def has_read(self, row: PackedRow) -> bool:
        """Return whether the prefix has the features of a row, until they are taken."""
        return self._read is not None and row.read_key == self._read[0]

    def take(self, row: PackedRow) -> Features | None:
        """Return the features of a row, and keep them no longer; None for another row than the one that was read."""
        if self._read is None or row.read_key != self._read[0]:
            return None
        (_, features), self._read = self._read, None
        return features


def common_tokens(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return the length of the longest common prefix that leaves each prompt at least one token."""
    first, last = min(prompts), max(prompts)  # in lexicographic order: a prefix of these two is a prefix of all
    most = max(0, min(map(len, prompts)) - 1)
    return next((k for k in range(most) if first[k] != last[k]), most)


class RecordingCache(DynamicCache):
    """Cache of one forward pass that keeps the keys and values of every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Layers = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeysValues:
        """Keep a layer's keys and values, and return them as they are."""
        self.kept[layer_idx] = key_states, value_states
        return key_states, value_states


class _PrefixedCache(DynamicCache):
    """Cache that prepends cached keys and values to every layer's own."""

    def __init__(self, layers: Mapping[int, KeysValues]) -> None:
        super().__init__()
        self._kept = layers

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeysValues:
        keys, values = self._kept[layer_idx]
        kept = _repeat_rows(keys, len(key_states)), _repeat_rows(values, len(key_states))
        return _concatenate(kept, (key_states, value_states), -2)


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(kept.numel() * kept.element_size() for kept in tensors)


def _concatenate(first: KeysValues, then: KeysValues, dim: int) -> KeysValues:
    return torch.cat([first[0], then[0]], dim), torch.cat([first[1], then[1]], dim)


def _repeat_rows(kept: Tensor, n_rows: int) -> Tensor:
    """Return (R, ...) from (K, ...), with each slice repeated for R / K consecutive rows."""
    return kept[:, None].expand(-1, n_rows // len(kept), *kept.shape[1:]).flatten(0, 1)
