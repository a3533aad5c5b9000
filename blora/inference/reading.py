"""Reading of the features of a decision head: hidden states of one forward pass, averaged over tokens.

A linear head reads the mean states of the prompt's tokens and the n-grams of its text, and no choices. A pointer
head reads the mean states of each choice's own tokens, its log-probability and its length. The mean states of the
prompt, which tell how familiar a question is, are read for both; those of an encoder have unit length at each depth, as
the embeddings of sentence encoders do. Behind them come those of a companion, if the linear head reads one. No draw of
a head changes the states, so that one pass serves every draw.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from blora.config import CompanionConfig, HeadConfig
from blora.errors import BaseModelError
from blora.inference.batches import PackedBatch, by_length, collate
from blora.inference.checkpoints import between
from blora.inference.companion import MOST_TOKENS, companion_of, companion_rows
from blora.inference.fork import first_layer, logits_at, states_at
from blora.inference.grams import MOST_PER_TOKEN, grams_of
from blora.inference.packing import PackedRow, States
from blora.inference.prefix import HeadPrefix, RecordingCache
from blora.inference.scoring import inputs_of, log_normalizers
from blora.inference.unpacked import for_model, read_states, way_of
from blora.inference.vocabulary import log_probs_of_each, plain_head
from blora.posterior.decision_head import DecisionHead, Features, HeadDraws
from blora.posterior.draws import NO_LORA, Draws, use_draws
from blora.posterior.inject import n_layers_of

__all__ = ["as_read", "head_log_probs", "read_prefix", "read_rows", "readable_depths", "trunk_of"]


def read_rows(
    model: PreTrainedModel,
    rows: Sequence[PackedRow],
    config: HeadConfig,
    lora: Draws,
    prefix: HeadPrefix | None = None,
) -> Features:
    """Return the features of rows of one readout, `linear` or `pointer`, differentiable in the LoRA.

    Args:
        model: a causal language model.
        rows: B questions; the layers below the states that come with all of them are not run.
        config: the settings of the head.
        lora: the LoRA below the head, as one draw.
        prefix: a common prefix of all rows, under that LoRA; None for no prefix.

    Raises:
        BaseModelError: if the model has several states a token at a depth of the head.
    """
    after = rows if prefix is None else [row.after(len(prefix.tokens)) for row in rows]
    batch = collate(after)
    inputs = inputs_of(model, batch, prefix.below if prefix is not None else None)
    known = batch.states
    if known is not None:
        known = States(known.layer, known.values.to(model.device)) if known.layer <= trunk_of(config, lora) else None
    with use_draws(lora):
        found = read_states(model, _depths(model, rows[0], config), known, **inputs)
        return _features(model, rows, batch, config, found, inputs, prefix.sums if prefix is not None else 0.0)


@torch.no_grad()
def read_prefix(model: PreTrainedModel, row: PackedRow, n_tokens: int, config: HeadConfig, lora: Draws) -> HeadPrefix:
    """Read a row and return the cached prefix of its first tokens, which has the features of the whole row.

    Args:
        model: as in `read_rows`.
        row: a question.
        n_tokens: length of the prefix, less than the length of the row's prompt.
        config: the settings of the head.
        lora: the LoRA below the head, as one draw.
    """
    batch = collate([row])
    inputs, record = inputs_of(model, batch), RecordingCache()
    depths = {*_depths(model, row, config), 1}  # at least one layer, whose keys tell the size of every layer's
    with use_draws(lora):
        found = states_at(model, depths, **inputs, cache=record)
        features = _features(model, [row], batch, config, found, inputs)
    sums = torch.cat([found[depth][0, :n_tokens].float().sum(0) for depth in config.depths])
    return HeadPrefix(model, lora, row, n_tokens, max(depths), record.kept, sums, features)


def _features(
    model: PreTrainedModel,
    rows: Sequence[PackedRow],
    batch: PackedBatch,
    config: HeadConfig,
    found: dict[int, Tensor],
    inputs: dict[str, Any],
    before: Tensor | float = 0.0,
) -> Features:
    """Return the features of rows from their states.

    Args:
        model: as in `read_rows`.
        rows: the whole rows.
        batch: the rows after their prefix.
        config: the settings of the head.
        found: the states of the batch at several depths.
        inputs: the model's arguments for the batch.
        before: (F,) sums of the states over the prefix.
    """
    if several := [depth for depth in config.depths if not _one_a_token(found[depth])]:
        raise BaseModelError(
            f"got {type(model).__name__}, which has several states a token at depths {several}, expected one: train "
            "the head with --depths last"
        )
    prompt = _sums(batch, found, config.depths, torch.zeros(1, dtype=torch.long))[:, 0] + before
    prompt = prompt / torch.tensor([[row.prompt_tokens] for row in rows], device=prompt.device)
    if way_of(model) == "none":
        prompt = normalize(prompt.unflatten(-1, (len(config.depths), -1)), dim=-1).flatten(-2)
    if rows[0].readout != "pointer":
        texts = [row.text for row in rows]
        states, none = prompt, prompt.new_zeros(len(prompt), 0)
        if config.companion is not None and rows[0].readout == "linear":
            states = torch.cat([prompt, _of_companion(model, texts, config.companion)], -1)
        return Features(states, none, prompt, grams=_grams_of(rows) if config.n_grams else ())
    totals = _choice_log_probs(model, batch, found, inputs)
    sums = _sums(batch, found, config.depths, torch.arange(1, batch.is_choice.shape[1] + 1))
    lengths = batch.length.to(sums.device).clamp_min(1)  # the last token of a choice, which ends it, is not read
    counts = torch.stack([totals, totals / lengths, lengths.log()], -1)
    sizes = torch.tensor([row.n_choices for row in rows], device=sums.device)
    return Features(sums / (lengths - 1).clamp_min(1)[..., None], counts, prompt, sizes=sizes)


def _grams_of(rows: Sequence[PackedRow]) -> tuple[Tensor, ...]:
    """Return the n-grams of each row's text: see `grams_of`. An interruption may come between two texts."""
    # White space counts once: in a run of any length it is part of no n-gram, and the limit must not be all of it.
    texts = [" ".join(row.text.split())[: MOST_PER_TOKEN * row.prompt_tokens] for row in rows]
    found = {text: grams_of(text) for text in between([*dict.fromkeys(texts)])}
    return tuple(found[text] for text in texts)


@torch.no_grad()
def _of_companion(model: PreTrainedModel, texts: Sequence[str], config: CompanionConfig) -> Tensor:
    """Return the states (B, F) of texts that the companion of a model reads: each text once, among similar lengths."""
    companion = companion_of(model)
    assert companion is not None  # `check_base` refuses an adapter without its companion
    different = [*dict.fromkeys(texts)]
    rows = companion_rows(companion, different)
    own = HeadConfig(depths=config.depths, n_states=config.n_states, n_directions=1)
    found: dict[str, Tensor] = {}
    for picked in between([*by_length(rows, MOST_TOKENS)]):
        states = read_rows(companion.model, [rows[i] for i in picked], own, NO_LORA).states
        found |= zip([different[i] for i in picked], states, strict=True)
    return torch.stack([found[text] for text in texts])


@torch.no_grad()
def readable_depths(model: PreTrainedModel, row: PackedRow, depths: Sequence[int]) -> tuple[int, ...]:
    """Return those of the depths at which the model has one state a token for a row, as the last depth has."""
    found = read_states(model, depths, **inputs_of(model, collate([row])))
    return tuple(depth for depth in depths if _one_a_token(found[depth]))


def _one_a_token(states: Tensor) -> bool:
    return states.ndim == 3  # (B, T, D)


def trunk_of(config: HeadConfig, lora: Draws) -> int:
    """Return the index of the deepest layer that is not above any depth of the head or any module of the LoRA.

    Cached inputs of this layer serve every reading, whatever the LoRA's weights.
    """
    return min([*config.depths, *([first_layer(lora.factors)] if lora.factors else [])])


def as_read(row: PackedRow, head: DecisionHead) -> PackedRow:
    """Return a row as a pointer head reads it, with its choices, even if the language model scores these.

    Letters stay as they are: a head reads no letters, so that their states would say nothing about the choices.
    """
    by_text = row.readout == "scores" and row.scoring == "text"
    return replace(row, readout="pointer") if by_text and head.n_outputs == 1 else row


def head_log_probs(draws: HeadDraws, rows: Sequence[PackedRow], features: Features) -> Tensor:
    """Return log-probabilities (S, B, C) float32 over the choices of every row; -inf for choices that a row lacks."""
    logits = draws.logits(features)
    n_choices = max(row.n_choices for row in rows)
    present = (torch.arange(n_choices) < torch.tensor([[row.n_choices] for row in rows])).to(logits.device)
    if features.owner is not None:
        choices, logits = logits, logits.new_zeros(len(logits), *present.shape)
        logits[:, present] = choices
    elif rows[0].readout == "linear":
        places = torch.tensor([[*row.outputs, *[0] * (n_choices - row.n_choices)] for row in rows])
        logits = logits.gather(-1, places.to(logits.device).expand(len(logits), -1, -1))
    logits = logits[..., :n_choices]  # a pointer head may have read these rows beside rows with more choices
    return logits.masked_fill(~present, -torch.inf).log_softmax(-1)


def _depths(model: PreTrainedModel, row: PackedRow, config: HeadConfig) -> set[int]:
    """Return the depths of the states that are read of a row.

    A pointer head also reads log-probabilities, which follow from the states that enter the output head.
    """
    return {*config.depths, *([n_layers_of(model)] if row.readout == "pointer" else [])}


def _sums(batch: PackedBatch, states: dict[int, Tensor], depths: Sequence[int], segments: Tensor) -> Tensor:
    """Return the sums of the states over the tokens of segments, the depths side by side: (B, len(segments), F)."""
    device = states[depths[0]].device
    members = (batch.segment[:, None, :] == segments[:, None]).float().to(device)  # (B, segments, T)
    return torch.cat([members @ states[depth].float() for depth in depths], -1)


def _choice_log_probs(
    model: PreTrainedModel, batch: PackedBatch, states: dict[int, Tensor], inputs: dict[str, object]
) -> Tensor:
    """Return the summed log-probabilities (B, C) of each choice's tokens from the states that enter the output head."""
    device, end = model.device, n_layers_of(model)
    row, column, place, token = (part.to(device) for part in (batch.row, batch.column, batch.place, batch.token))
    plain = plain_head(model)
    if plain is not None:
        found = log_probs_of_each(plain, states[end][row, column].float()[None], place, token)[0]
    else:
        logits = logits_at(model, States(end, states[end]), row, column, **for_model(inputs))[None]
        found = (logits[:, place, token].float() - log_normalizers(logits)[:, place])[0]
    totals = torch.zeros(batch.is_choice.numel(), device=device).index_add(0, batch.choice.to(device), found)
    return totals.view(batch.is_choice.shape)
