"""The trunk: all layers below the first adapted one, run once per row instead of once per step.

The trunk is frozen and the same for every draw, so its output for a row never changes. The output is kept in memory
or, if it is large, in a temporary file that vanishes with the process. If there is no room for it either way, the
trunk runs in every step.
"""

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.inference.batches import by_length, collate, spread_states
from blora.inference.fork import runs_in_parts
from blora.inference.packing import States
from blora.inference.scoring import states_of
from blora.training.config import CACHE_GIB
from blora.training.evaluate import batch_tokens
from blora.training.progress import rows_bar
from blora.training.rows.packed import LabelledRow

__all__ = ["attach_states", "trunk_states", "with_states"]

logger = logging.getLogger(__name__)

GIB = 2**30
# Disk space left free in the temporary folder, for checkpoints and other programs.
SPARE_BYTES = GIB
VALUE_BYTES = 4  # float32
# More values than this (4 GiB) go to a file instead of memory.
MEMORY_VALUES = 2**30


def with_states(
    model: PreTrainedModel, rows: Sequence[LabelledRow], layer: int, cache_gib: float = CACHE_GIB
) -> list[LabelledRow]:
    """Return the rows, each with the hidden states (n_tokens, D) that enter a decoder layer.

    Rows that already have their states are returned unchanged. If the states do not fit, a warning is logged and the
    rows are returned unchanged.

    Args:
        model: a frozen causal language model; if it cannot be run in parts, the rows are returned unchanged.
        rows: any number of rows.
        layer: index of the first adapted layer; at 0 there is no trunk, and the rows are returned unchanged.
        cache_gib: upper limit for all states together, in GiB of memory or disk.
    """
    known = all(row.row.states is not None and row.row.states.layer == layer for row in rows)
    if layer == 0 or known or not runs_in_parts(model):
        return list(rows)
    needed_gib = sum(row.row.n_tokens for row in rows) * model.config.get_text_config().hidden_size * VALUE_BYTES / GIB
    if needed_gib > cache_gib:
        return _uncached(rows, layer, needed_gib, f"the limit is {cache_gib:g} GiB")
    try:
        store = trunk_states(model, rows, layer)
    except OSError as exc:
        return _uncached(rows, layer, needed_gib, exc.strerror or str(exc))
    return attach_states(rows, layer, store)


def _uncached(rows: Sequence[LabelledRow], layer: int, needed_gib: float, reason: str) -> list[LabelledRow]:
    """Return the rows unchanged, and log why their states are not kept."""
    logger.warning(
        "the %d layers below the adapted ones run in every step: their output for %d rows takes %.3g GiB, but %s",
        *(layer, len(rows), needed_gib, reason),
    )
    return list(rows)


def attach_states(rows: Sequence[LabelledRow], layer: int, store: Tensor) -> list[LabelledRow]:
    """Return the rows, each with its slice of the states that `trunk_states` returned for all of them."""
    parts = store.split([row.row.n_tokens for row in rows])
    return [
        replace(row, row=replace(row.row, states=States(layer, part))) for row, part in zip(rows, parts, strict=True)
    ]


def trunk_states(model: PreTrainedModel, rows: Sequence[LabelledRow], layer: int) -> Tensor:
    """Return the hidden states (N, D) that enter a decoder layer, for the N tokens of all rows, row after row.

    Raises:
        OSError: if the temporary folder has no room for the states.
    """
    packed = [row.row for row in rows]
    ends = list(accumulate(row.n_tokens for row in packed))
    store = _store(ends[-1], model.config.get_text_config().hidden_size)
    with rows_bar(len(rows), "running the frozen layers") as bar:
        for picked in by_length(packed, batch_tokens(model)):
            batch = [packed[i] for i in picked]
            for i, row in zip(picked, spread_states(batch, states_of(model, collate(batch), layer)), strict=True):
                assert row.states is not None  # it was just attached
                store[ends[i] - row.n_tokens : ends[i]] = row.states.values
            bar.update(len(picked))
    return store


def _store(n_tokens: int, width: int) -> Tensor:
    """Return an uninitialised (n_tokens, width) float32 tensor, in memory or, if large, in a temporary file.

    Raises:
        OSError: if the temporary folder has no room.
    """
    size = n_tokens * width
    if size <= MEMORY_VALUES:
        return torch.empty(n_tokens, width)
    if not hasattr(os, "posix_fallocate"):
        raise OSError(errno.ENOTSUP, "this system cannot reserve disk space for a file")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < size * VALUE_BYTES + SPARE_BYTES:
        raise OSError(errno.ENOSPC, f"{folder} has {free / GIB:.3g} GiB free")
    handle, name = tempfile.mkstemp(prefix="blora-trunk-", dir=folder)
    try:
        # Reserve the space now: writing to a sparse file on a full disk would kill the process (SIGBUS).
        os.posix_fallocate(handle, 0, size * VALUE_BYTES)
        return torch.from_file(name, shared=True, size=size).view(n_tokens, width)
    finally:
        os.close(handle)
        os.unlink(name)  # the mapping lives on
