"""Reading of the features of a decision head: hidden states of one forward pass, averaged over tokens.

A linear head reads the mean states of the prompt's tokens and the prompt's character n-grams, and no choices. A pointer
head reads the mean states of each choice's own tokens, its log-probability and its length. The mean states of the
prompt, which tell how familiar a question is, are read for both. No draw of a head changes
the states, so that one pass serves every draw.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.config import HeadConfig
from blora.inference.fork import decoder_layers, first_layer, logits_at, states_at
from blora.inference.grams import gram_counts
from blora.inference.packing import PackedBatch, PackedRow, States, collate
from blora.inference.prefix import Prefix
from blora.inference.scoring import inputs_of, log_normalizers
from blora.inference.vocabulary import log_probs_of_each, plain_head
from blora.posterior.decision_head import Features, HeadDraws
from blora.posterior.draws import Draws, use_draws

__all__ = ["head_log_probs", "read_rows", "trunk_of"]


def read_rows(
    model: PreTrainedModel,
    rows: Sequence[PackedRow],
    config: HeadConfig,
    lora: Draws,
    prefix: Prefix | None = None,
) -> Features:
    """Return the features of rows of one readout, `linear` or `pointer`, differentiable in the LoRA.

    Args:
        model: a causal language model.
        rows: B questions; the layers below the states that come with all of them are not run.
        config: the settings of the head.
        lora: the LoRA below the head, as one draw.
        prefix: a common prefix of all rows, under that LoRA; None for no prefix.
    """
    after = rows if prefix is None else [row.after(len(prefix.tokens)) for row in rows]
    batch = collate(after)
    points = rows[0].readout == "pointer"
    n_layers = len(decoder_layers(model)[1])
    inputs = inputs_of(model, batch, prefix.memory(0, 1) if prefix is not None else None)
    known = batch.states
    if known is not None:
        known = States(known.layer, known.values.to(model.device)) if known.layer <= trunk_of(config, lora) else None
    with use_draws(lora):
        found = states_at(model, {*config.depths, n_layers} if points else config.depths, known, **inputs)
        if points:
            totals = _choice_log_probs(model, batch, found[n_layers], inputs)
    prompt = _sums(batch, found, config.depths, torch.zeros(1, dtype=torch.long))[:, 0]
    if prefix is not None:
        assert prefix.sums is not None  # prefixes of an adapter with a head are read at its depths
        prompt = prompt + prefix.sums
    prompt = prompt / torch.tensor([[row.prompt_tokens] for row in rows], device=prompt.device)
    if not points:
        return Features(prompt, gram_counts([row.text for row in rows], config.n_grams).to(prompt.device), prompt)
    sums = _sums(batch, found, config.depths, torch.arange(1, batch.is_choice.shape[1] + 1))
    lengths = batch.length.to(sums.device).clamp_min(1)  # the last token of a choice, which ends it, is not read
    counts = torch.stack([totals, totals / lengths, lengths.log()], -1)
    return Features(sums / (lengths - 1).clamp_min(1)[..., None], counts, prompt)


def trunk_of(config: HeadConfig, lora: Draws) -> int:
    """Return the layer whose input is the deepest state that every later reading can continue from, for any LoRA."""
    return min([*config.depths, *([first_layer(lora.factors)] if lora.factors else [])])


def head_log_probs(draws: HeadDraws, rows: Sequence[PackedRow], features: Features) -> Tensor:
    """Return log-probabilities (S, B, C) float32 over the choices of every row; -inf for choices that a row lacks."""
    logits = draws.logits(features)
    n_choices = max(row.n_choices for row in rows)
    present = torch.arange(n_choices) < torch.tensor([[row.n_choices] for row in rows])
    if rows[0].readout == "linear":
        places = torch.tensor([[*row.outputs, *[0] * (n_choices - row.n_choices)] for row in rows])
        logits = logits.gather(-1, places.to(logits.device).expand(len(logits), -1, -1))
    logits = logits[..., :n_choices]  # a pointer head may have read these rows beside rows with more choices
    return logits.masked_fill(~present.to(logits.device), -torch.inf).log_softmax(-1)


def _sums(batch: PackedBatch, states: dict[int, Tensor], depths: Sequence[int], segments: Tensor) -> Tensor:
    """Return the sums of the states over the tokens of segments, the depths side by side: (B, len(segments), F)."""
    device = states[depths[0]].device
    members = (batch.segment[:, None, :] == segments[:, None]).float().to(device)  # (B, segments, T)
    return torch.cat([members @ states[depth].float() for depth in depths], -1)


def _choice_log_probs(model: PreTrainedModel, batch: PackedBatch, final: Tensor, inputs: dict[str, object]) -> Tensor:
    """Return the summed log-probabilities of each choice's tokens, (B, C), given the states that enter the output head.

    A model that does more with its logits than a linear layer runs once more.
    """
    device = final.device
    row, column, place, token = (part.to(device) for part in (batch.row, batch.column, batch.place, batch.token))
    plain = plain_head(model)
    if plain is not None:
        found = log_probs_of_each(plain, final[row, column].float()[None], place, token)[0]
    else:
        logits = logits_at(model, None, row, column, **inputs)[None]
        found = (logits[:, place, token].float() - log_normalizers(logits)[:, place])[0]
    totals = torch.zeros(batch.is_choice.numel(), device=device).index_add(0, batch.choice.to(device), found)
    return totals.view(batch.is_choice.shape)
