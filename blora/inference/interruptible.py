"""Insertion of checkpoints into a model's forward passes: before each part of a layer, and in attention of long rows.

Attention over a long row is computed a few queries at a time. A query's output depends on no other query, so the pieces
give the same output as one computation, up to rounding. Rows of ordinary length are computed at once.
"""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from blora.errors import BaseModelError
from blora.inference.checkpoints import between, checkpoint
from blora.posterior.inject import decoder_layers
from blora.posterior.layer import linear_shape

__all__ = ["make_interruptible"]

# Most products of a query and a key that are computed at once.
PIECE_SCORES = 2**23


def make_interruptible(model: PreTrainedModel) -> None:
    """Insert a checkpoint before each part of a layer, each matrix product and each piece of attention.

    The first two need a model whose decoder layers can be found, the last one whose attention is torch's
    `scaled_dot_product_attention`; its long rows are then computed in pieces in every model of the process.
    """
    with suppress(BaseModelError):
        _, layers = decoder_layers(model)
        for layer in layers:
            products = (module for module in layer.modules() if linear_shape(module) is not None)
            for part in dict.fromkeys([*layer.children(), *products]):
                part.register_forward_pre_hook(_checkpoint_before)
    if model.config._attn_implementation == "sdpa":
        # Under its own name, because some models ask for it and attend to other keys under another one.
        AttentionInterface.register("sdpa", _attend_in_pieces)


def _checkpoint_before(module: nn.Module, args: object) -> None:
    checkpoint()


def _attend_in_pieces(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention outputs (R, T, heads, head size) of queries (R, heads, T, head size)."""
    n_rows, n_heads, width, _ = query.shape
    at_once = max(1, PIECE_SCORES // (n_rows * n_heads * key.shape[2]))
    if attention_mask is None or at_once >= width or options.get("position_bias") is not None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return whole
    pieces = [
        sdpa_attention_forward(module, part, key, value, mask, **options)[0]
        for part, mask in between(
            zip(query.split(at_once, 2), attention_mask.expand(-1, -1, width, -1).split(at_once, 2), strict=True)
        )
    ]
    return torch.cat(pieces, 1), None
