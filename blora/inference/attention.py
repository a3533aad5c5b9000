"""Attention over long rows a few queries at a time, with a checkpoint before each piece.

A query's output depends on no other query, so the pieces compute what the whole would, up to rounding. Rows of ordinary
length stay whole.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from blora.inference.checkpoints import between

__all__ = ["attend_in_pieces"]

# Products of a query and a key that are computed at once.
PIECE_SCORES = 2**24

_NAME = "blora_sdpa_in_pieces"


def attend_in_pieces(model: PreTrainedModel) -> None:
    """Have a model's attention interrupted within long rows, if it is torch's scaled dot product attention."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _in_pieces)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)


def _in_pieces(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """For queries (R, heads, T, head size) the outputs (R, T, heads, head size)."""
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
