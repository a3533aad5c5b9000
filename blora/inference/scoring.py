"""Log-probabilities of choices under S posterior draws, in one forward pass over S * B rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.inference.batches import PackedBatch
from blora.inference.checkpoints import between, checkpoint
from blora.inference.fork import first_layer, hidden_at, logits_at, states_at
from blora.inference.packing import States
from blora.inference.prefix import Memory
from blora.inference.unpacked import SEGMENT, for_model, states_before_head, way_of
from blora.inference.vocabulary import MIN_DRAWS, log_probs_along_draws, log_probs_of_each, plain_head
from blora.inference.windows import with_each, with_window
from blora.posterior.draws import Draws, use_draws

__all__ = ["at_positions", "inputs_of", "log_normalizers", "score_draws", "score_rows", "states_of"]

# Most float32 logits that are normalised at once: 32 MiB.
CHUNK_ELEMENTS = 2**23


def score_rows(model: PreTrainedModel, batch: PackedBatch, draws: Draws | None, memory: Memory | None = None) -> Tensor:
    """Return log-probabilities over the choices of every row, differentiable in the draws.

    Args:
        model: a causal language model whose adapted modules are `LoraLinear`.
        batch: B rows.
        draws: S draws, each for B / S consecutive rows; None for the base model.
        memory: the cached prefix of the rows, if they have one.

    Returns:
        (B, C) float32, normalised over each row's choices; -inf for choices that a row does not have.
    """
    return _score_from(model, batch, _untouched(batch, draws), draws, 1, memory)


def _untouched(batch: PackedBatch, draws: Draws | None) -> States | None:
    """Return the batch's states, or None if the draws adapt a layer below them."""
    states = batch.states
    return None if states is not None and draws is not None and states.layer > first_layer(draws.factors) else states


def _score_from(
    model: PreTrainedModel,
    batch: PackedBatch,
    states: States | None,
    draws: Draws | None,
    repeats: int,
    memory: Memory | None,
) -> Tensor:
    """Score rows from states (B, T, D) on, after the cached prefix."""
    device = model.device
    n_rows, n_choices = batch.is_choice.shape
    place, token = batch.place.to(device), batch.token.to(device)
    head = plain_head(model)
    with use_draws(draws):
        if head is not None:
            hidden = at_positions(hidden_at, model, batch, states, repeats, memory).float()
            shared = repeats >= MIN_DRAWS and not torch.is_grad_enabled()
            token_log_probs = (log_probs_along_draws if shared else log_probs_of_each)(head, hidden, place, token)
        else:
            logits = at_positions(logits_at, model, batch, states, repeats, memory)
            token_log_probs = logits[:, place, token].float() - log_normalizers(logits)[:, place]
    totals = torch.zeros(repeats, n_rows * n_choices, device=device)
    totals = totals.index_add(1, batch.choice.to(device), token_log_probs)
    totals = totals.view(repeats, n_rows, n_choices) / batch.divisor.to(device)
    totals = totals.masked_fill(~batch.is_choice.to(device), -torch.inf)
    return totals.log_softmax(-1).flatten(0, 1)


def at_positions(
    run: Callable[..., Tensor],
    model: PreTrainedModel,
    batch: PackedBatch,
    states: States | None,
    repeats: int,
    memory: Memory | None = None,
) -> Tensor:
    """Run `hidden_at` or `logits_at` at the predicting positions of repeated copies of a batch.

    Args:
        run: `hidden_at` or `logits_at`.
        model: as in `score_rows`.
        batch: B rows with P positions.
        states: (B, T, D) to start from; None starts at the input.
        repeats: number of copies, for the active draws.
        memory: the cached prefix of the rows, if they have one.

    Returns:
        (repeats, P, D or V).
    """
    device = model.device
    offsets = torch.arange(repeats, device=device)[:, None]
    row = (batch.row.to(device) + offsets * len(batch.is_choice)).flatten()
    known = States(states.layer, _repeat(states.values.to(device), repeats)) if states is not None else None
    inputs = {name: with_each(given, lambda t: _repeat(t, repeats)) for name, given in inputs_of(model, batch).items()}
    known = states_before_head(model, known, inputs)
    found = run(model, known, row, batch.column.to(device).repeat(repeats), **for_model(inputs), **_cache(memory))
    return found.view(repeats, len(batch.row), -1)


@torch.no_grad()
def states_of(
    model: PreTrainedModel,
    batch: PackedBatch,
    layer: int,
    draws: Draws | None = None,
    memory: Memory | None = None,
) -> States:
    """Return the hidden states (B, T, D) that enter a layer below which the draws do not differ."""
    known = _untouched(batch, draws)
    if known is not None and known.layer > layer:
        known = None
    with use_draws(draws.first(1) if draws is not None and draws.rows is None else draws):
        return States(layer, states_at(model, [layer], known, **inputs_of(model, batch, memory))[layer])


def score_draws(
    model: PreTrainedModel,
    batch: PackedBatch,
    states: States | None,
    draws: Callable[[int, int], Draws],
    *,
    start: int,
    stop: int,
    max_batch_tokens: int | None,
    memory: Callable[[int, int], Memory | None],
) -> Tensor:
    """Return log-probabilities over the choices under some draws, from hidden states on.

    In precisions below float32, at least `vocabulary.MIN_DRAWS` draws in a pass share their sums over the vocabulary.

    Args:
        model: as in `score_rows`.
        batch: B rows.
        states: (B, T, D) that enter a layer below which the draws do not differ; None if there is no such layer.
        draws: returns the draws of an index range for the rows.
        start: the first draw.
        stop: the one after the last.
        max_batch_tokens: most padded tokens x draws in a forward pass; draws that exceed it are divided among several
            passes. None for one pass.
        memory: returns the cached prefix of the rows for an index range of draws, or None.

    Returns:
        (stop - start, B, C) float32, normalised over the choices; -inf for choices that a row does not have.
    """
    at_once = max(1, max_batch_tokens // batch.padded_tokens) if max_batch_tokens else stop - start
    scored = []
    for first in between(range(start, stop, at_once)):
        last = min(first + at_once, stop)
        log_probs = _score_from(model, batch, states, draws(first, last), last - first, memory(first, last))
        scored.append(log_probs.view(last - first, -1, log_probs.shape[-1]))
    return torch.cat(scored)


def _cache(memory: Memory | None) -> dict[str, Any]:
    """Return the model's keyword arguments for a cached prefix."""
    return {"cache": memory.cache()} if memory is not None else {}


def inputs_of(model: PreTrainedModel, batch: PackedBatch, memory: Memory | None = None) -> dict[str, Any]:
    """Return the model's keyword arguments for a batch after a cached prefix, on the model's device.

    A model that takes no block masks has the batch's segments in place of them: see `blora.inference.unpacked`.
    """
    if way_of(model) is not None:
        return {"input_ids": batch.input_ids.to(model.device), SEGMENT: batch.segment.to(model.device)}
    mask = _additive(batch.attention_mask(model.device))
    return _cache(memory) | {
        "input_ids": batch.input_ids.to(model.device),
        "position_ids": batch.position_ids.to(model.device),
        "attention_mask": with_window(model, mask, batch.position_ids, batch.n_past),
    }


def _repeat(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))


def _additive(mask: Tensor) -> Tensor:
    """Return an additive mask (B, 1, T, T): 0 where visible and the lowest float32 elsewhere, for every backend.

    Attention runs in float32 whatever the base's dtype: see `load_base_model`.
    """
    checkpoint()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)


def log_normalizers(logits: Tensor) -> Tensor:
    """Return log sum exp over the vocabulary of (S, P, V) in float32, (S, P), a few positions at a time."""
    chunks = logits.flatten(0, 1).split(max(1, CHUNK_ELEMENTS // logits.shape[-1]))
    return torch.cat([chunk.float().logsumexp(-1) for chunk in between(chunks)]).view(logits.shape[:2])
