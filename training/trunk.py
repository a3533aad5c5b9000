"""The trunk: everything below the first adapted layer, run once a row instead of once a step.

Those layers are frozen and no draw reaches them, so their output for a row never changes. It is kept in memory, or
beyond a size in a file of the temporary folder that vanishes with the process.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.inference.fork import runs_in_parts
from blora.inference.packing import States, by_length, collate, spread_states
from blora.inference.scoring import states_of
from blora.training.rows import LabelledRow

__all__ = ["attach_states", "trunk_states", "with_states"]

# Values beyond which they go to a file: 4 GiB of float32.
MEMORY_VALUES = 2**30
BATCH_TOKENS = 2048


def with_states(model: PreTrainedModel, rows: Sequence[LabelledRow], layer: int) -> list[LabelledRow]:
    """The same rows, each with the hidden states (n_tokens, D) that enter a decoder layer, unless they have them.

    Args:
        model: a causal language model, frozen; one that cannot be run in parts leaves the rows as they are.
        rows: any number.
        layer: index of the first adapted layer; with 0 there is nothing below it to keep.
    """
    known = all(row.row.states is not None and row.row.states.layer == layer for row in rows)
    if layer == 0 or known or not runs_in_parts(model):
        return list(rows)
    return attach_states(rows, layer, trunk_states(model, rows, layer))


def attach_states(rows: Sequence[LabelledRow], layer: int, store: Tensor) -> list[LabelledRow]:
    """The same rows with their share of what `trunk_states` gave for them."""
    parts = store.split([row.row.n_tokens for row in rows])
    return [
        replace(row, row=replace(row.row, states=States(layer, part))) for row, part in zip(rows, parts, strict=True)
    ]


def trunk_states(model: PreTrainedModel, rows: Sequence[LabelledRow], layer: int) -> Tensor:
    """The hidden states that enter a decoder layer, (n_tokens of all rows, D), row after row."""
    packed = [row.row for row in rows]
    ends = list(accumulate(row.n_tokens for row in packed))
    store = _store(ends[-1], model.config.get_text_config().hidden_size)
    for picked in by_length(packed, BATCH_TOKENS):
        batch = [packed[i] for i in picked]
        for i, row in zip(picked, spread_states(batch, states_of(model, collate(batch), layer)), strict=True):
            assert row.states is not None  # it was just attached
            store[ends[i] - row.n_tokens : ends[i]] = row.states.values
    return store


def _store(n_tokens: int, width: int) -> Tensor:
    """Room for (n_tokens, D) float32."""
    size = n_tokens * width
    if size <= MEMORY_VALUES:
        return torch.empty(n_tokens, width)
    handle, name = tempfile.mkstemp(prefix="blora-trunk-")
    os.close(handle)
    store = torch.from_file(name, shared=True, size=size).view(n_tokens, width)
    os.unlink(name)  # the mapping lives on
    return store
