"""What many prompts begin with, read once: a system message, a list of examples, instructions.

Attention sees of earlier tokens nothing but keys and values, and these depend on no later token. So those of a common
beginning are kept: below the layer in which draws begin to differ once, above it once for each draw. Rows then bring
only what comes after.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from blora.inference.checkpoints import checkpoint
from blora.inference.fork import branching_layer, hidden_at, states_below
from blora.inference.packing import States
from blora.posterior.draws import Draws, use_draws

__all__ = ["MIN_PREFIX", "Memory", "Prefix", "common_tokens"]

KeysValues = tuple[Tensor, Tensor]
Layers = dict[int, KeysValues]

# Tokens from which on a common beginning is worth remembering.
MIN_PREFIX = 32


@dataclass(frozen=True, slots=True)
class Memory:
    """Keys and values of p tokens that come before every row of a forward pass.

    Attributes:
        layers: keys and values of each decoder layer, both (K, heads, p, head size): of K = 1 for all rows, or of K
            draws, of which each takes an equal share of the rows, draws outermost.
    """

    layers: Mapping[int, KeysValues]

    def cache(self) -> DynamicCache:
        """For one forward pass: what a layer computes is put after what it remembers, and not kept."""
        return _Recall(self.layers)


class Prefix:
    """Tokens that prompts begin with, under the draws of one adapter; made as far as draws are asked for.

    Args:
        model: a causal language model whose adapted modules are `LoraLinear`.
        tokens: p token ids.
        draws: of the adapter; None: the base model.
        max_batch_tokens: bound of tokens times draws of a forward pass, None for no bound.
    """

    @torch.no_grad()
    def __init__(
        self, model: PreTrainedModel, tokens: Sequence[int], draws: Draws | None, *, max_batch_tokens: int | None = None
    ) -> None:
        self.tokens = tuple(tokens)
        self._model = model
        self._draws = draws
        self._at_once = max(1, max_batch_tokens // len(tokens)) if max_batch_tokens is not None else None
        self._states: States | None = None
        self._made = 0  # draws that `_above` has
        self._above: Layers = {}
        self._below: Layers = {}
        layer = branching_layer(draws) if draws is not None else None
        self._branches = layer is not None
        if layer != 0:
            record = _Record()
            with use_draws(draws.first(1) if draws is not None else None):
                if layer is None:
                    self._run_to_head(record, None, 1)
                else:
                    self._states = States(layer, states_below(model, layer, None, **self._inputs(1), cache=record))
            self._below = record.kept

    def n_bytes(self, n_samples: int) -> int:
        """Memory taken once so many draws are made."""
        one = self.memory(0, 1).layers if self._branches else {}
        above = sum(_size(pair) for layer, pair in one.items() if layer not in self._below)
        return sum(map(_size, self._below.values())) + n_samples * above

    @property
    def below(self) -> Memory:
        """What rows remember in layers in which no draw differs from another."""
        return Memory(self._below)

    @torch.no_grad()
    def memory(self, start: int, stop: int) -> Memory:
        """What rows remember under draws start to stop - 1."""
        above = {}
        if self._branches:
            while self._made < stop:
                checkpoint()
                self._make(min(stop, self._made + self._at_once) if self._at_once is not None else stop)
            above = {layer: (keys[start:stop], values[start:stop]) for layer, (keys, values) in self._above.items()}
        return Memory({**self._below, **above})

    def _make(self, stop: int) -> None:
        """Goes on to draw stop - 1, unless another thread has made draws meanwhile: see `checkpoints`."""
        assert self._draws is not None  # only draws branch
        start = self._made
        if start >= stop:
            return
        record, repeats = _Record(), stop - start
        known = self._states
        if known is not None:
            known = States(known.layer, known.values.expand(repeats, -1, -1))
        with use_draws(self._draws.part(start, stop)):
            self._run_to_head(record, known, repeats)
        if self._made != start:
            return
        before = self._above
        above = {layer: _joined(before[layer], pair, 0) if before else pair for layer, pair in record.kept.items()}
        self._above, self._made = above, stop  # together, or not at all where the memory does not suffice

    def _run_to_head(self, record: "_Record", known: States | None, repeats: int) -> None:
        """Every layer from known states on; of the last one's output a position a row is the least there is."""
        row = torch.arange(repeats, device=self._model.device)
        hidden_at(self._model, known, row, torch.zeros_like(row), **self._inputs(repeats), cache=record)

    def _inputs(self, repeats: int) -> dict[str, Any]:
        ids = torch.tensor([self.tokens], device=self._model.device).expand(repeats, -1)
        hidden = torch.full((ids.shape[1],) * 2, torch.finfo(torch.float32).min, device=ids.device).triu(1)
        return {
            "input_ids": ids,
            "position_ids": torch.arange(ids.shape[1], device=ids.device).expand(repeats, -1),
            "attention_mask": hidden.expand(repeats, 1, -1, -1),
        }


def common_tokens(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with, of which each has at least one more."""
    first, last = min(prompts), max(prompts)  # in dictionary order: what these two share, all share
    most = max(0, min(map(len, prompts)) - 1)
    return next((k for k in range(most) if first[k] != last[k]), most)


class _Record(DynamicCache):
    """Keeps what every layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Layers = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeysValues:
        self.kept[layer_idx] = key_states, value_states
        return key_states, value_states


class _Recall(DynamicCache):
    """Puts what was kept before what every layer computes."""

    def __init__(self, layers: Mapping[int, KeysValues]) -> None:
        super().__init__()
        self._kept = layers

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeysValues:
        keys, values = self._kept[layer_idx]
        kept = _spread(keys, len(key_states)), _spread(values, len(key_states))
        return _joined(kept, (key_states, value_states), -2)


def _size(pair: KeysValues) -> int:
    return sum(kept.numel() * kept.element_size() for kept in pair)


def _joined(first: KeysValues, then: KeysValues, dim: int) -> KeysValues:
    return torch.cat([first[0], then[0]], dim), torch.cat([first[1], then[1]], dim)


def _spread(kept: Tensor, n_rows: int) -> Tensor:
    """(K, ...) for R rows, R / K of them in a row for each."""
    return kept[:, None].expand(-1, n_rows // len(kept), *kept.shape[1:]).flatten(0, 1)
