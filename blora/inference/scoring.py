"""Log-probabilities of choices under S posterior draws, in one forward pass over S * B rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.inference.checkpoints import between, checkpoint
from blora.inference.fork import first_layer, hidden_at, logits_at, states_below
from blora.inference.packing import PackedBatch, States
from blora.inference.prefix import Memory
from blora.inference.vocabulary import MIN_DRAWS, log_probs_along_draws, log_probs_of_each, plain_head
from blora.posterior.draws import Draws, use_draws

__all__ = ["at_positions", "score_draws", "score_rows", "states_of"]

# Elements of float32 logits normalised at once: 32 MiB.
CHUNK_ELEMENTS = 2**23


def _nothing(start: int, stop: int) -> None:
    """What rows remember before which nothing comes."""


def score_rows(
    model: PreTrainedModel, batch: PackedBatch, draws: Draws | None, repeats: int = 1, memory: Memory | None = None
) -> Tensor:
    """Log-probabilities over the choices of every row, differentiable in the draws.

    Args:
        model: a causal language model whose adapted modules are `LoraLinear`.
        batch: B rows.
        draws: S draws; each takes its own B * repeats / S consecutive rows. None: the base model.
        repeats: copies of the batch to run, draws outermost.
        memory: what comes before the rows, where something does.

    Returns:
        (repeats * B, C) float32, normalised over each row's choices; -inf where a row has no such choice.
    """
    return _score_from(model, batch, _untouched(batch, draws), draws, repeats, memory)


def _untouched(batch: PackedBatch, draws: Draws | None) -> States | None:
    """The batch's states, unless draws adapt a layer below them."""
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
    """`score_rows` from states (B, T, D) on, after what is remembered."""
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
            token_log_probs = logits[:, place, token].float() - _log_normalizers(logits)[:, place]
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
    """What `hidden_at` or `logits_at` gives of a batch where its choices are predicted, for so many copies of it.

    Args:
        run: one of the two.
        model: as in `score_rows`.
        batch: B rows with P positions.
        states: (B, T, D) to go on from.
        repeats: copies, under the draws in force.
        memory: what comes before the rows, where something does.

    Returns:
        (repeats, P, D or V).
    """
    device = model.device
    offsets = torch.arange(repeats, device=device)[:, None]
    row = (batch.row.to(device) + offsets * len(batch.is_choice)).flatten()
    known = States(states.layer, _repeat(states.values.to(device), repeats)) if states is not None else None
    inputs = {name: _repeat(tensor, repeats) for name, tensor in _inputs(model, batch).items()}
    found = run(model, known, row, batch.column.to(device).repeat(repeats), **inputs, **_cache(memory))
    return found.view(repeats, len(batch.row), -1)


@torch.no_grad()
def states_of(
    model: PreTrainedModel,
    batch: PackedBatch,
    layer: int,
    draws: Draws | None = None,
    memory: Memory | None = None,
) -> States:
    """The hidden states (B, T, D) that enter a layer, the same under every draw that is the same below it."""
    known = _untouched(batch, draws)
    if known is not None and known.layer == layer:
        return known
    if known is not None and known.layer > layer:
        known = None
    with use_draws(draws.first(1) if draws is not None and draws.rows is None else draws):
        return States(layer, states_below(model, layer, known, **_inputs(model, batch), **_cache(memory)))


def score_draws(
    model: PreTrainedModel,
    batch: PackedBatch,
    states: States | None,
    draws: Callable[[int, int], Draws],
    *,
    start: int = 0,
    stop: int,
    max_batch_tokens: int | None,
    memory: Callable[[int, int], Memory | None] = _nothing,
) -> Tensor:
    """Log-probabilities over the choices under some draws, from hidden states on.

    Below float32, and from `vocabulary.MIN_DRAWS` draws on, those of a pass share their sums over the vocabulary.

    Args:
        model: as in `score_rows`.
        batch: B rows.
        states: (B, T, D) that enter a layer below which the draws do not differ, None for no such layer.
        draws: gives draws first to last - 1 for the rows.
        start: the first draw.
        stop: the one after the last.
        max_batch_tokens: bound of padded tokens times draws of a forward pass; where the batch under all these draws
            exceeds it, they take several passes. None: one pass.
        memory: gives what comes before the rows under draws first to last - 1, where something does.

    Returns:
        (stop - start, B, C) float32, normalised over the choices; -inf where a row has no such choice.
    """
    at_once = max(1, max_batch_tokens // batch.padded_tokens) if max_batch_tokens else stop - start
    scored = []
    for first in between(range(start, stop, at_once)):
        last = min(first + at_once, stop)
        log_probs = _score_from(model, batch, states, draws(first, last), last - first, memory(first, last))
        scored.append(log_probs.view(last - first, -1, log_probs.shape[-1]))
    return torch.cat(scored)


def _cache(memory: Memory | None) -> dict[str, Any]:
    """What the model takes of a memory."""
    return {"cache": memory.cache()} if memory is not None else {}


def _inputs(model: PreTrainedModel, batch: PackedBatch) -> dict[str, Tensor]:
    """What the model takes of a batch, on its device."""
    return {
        "input_ids": batch.input_ids.to(model.device),
        "position_ids": batch.position_ids.to(model.device),
        "attention_mask": _additive(batch.attention_mask.to(model.device)),
    }


def _repeat(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))


def _additive(mask: Tensor) -> Tensor:
    """(B, 1, T, T) of 0 where visible and the lowest float32 elsewhere, which every attention backend takes.

    Attention runs in float32 whatever the base's dtype: see `load_base_model`.
    """
    checkpoint()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)


def _log_normalizers(logits: Tensor) -> Tensor:
    """Log sum exp of (S, P, V) over the vocabulary in float32, (S, P), a few positions at a time."""
    chunks = logits.flatten(0, 1).split(max(1, CHUNK_ELEMENTS // logits.shape[-1]))
    return torch.cat([chunk.float().logsumexp(-1) for chunk in between(chunks)]).view(logits.shape[:2])
