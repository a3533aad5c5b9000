"""Sliding windows: layers in which a token attends only to the last few positions up to its own.

The library counts a window in columns. In a packed row the positions restart behind the prompt, and a row may follow a
cached prefix, so that its windows are counted in positions here. A row that fits into the window needs no mask of its
own for the layers that slide.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.base_model.loading import sliding_window_of
from blora.inference.checkpoints import checkpoint

__all__ = ["Masks", "Window", "named_window", "use_window", "with_each", "with_window"]

# One mask for every layer, or one for each type of layer, which a decoder of the library takes in place of it.
Masks = Tensor | dict[str, Tensor]

# Attribute of a model: the window in the masks of longer rows; missing or None where rows are not longer.
_WINDOW = "_blora_window"


@dataclass(frozen=True, slots=True)
class Window:
    """Sliding window of a model.

    Attributes:
        width: number of positions that a token attends to, its own included.
        by_type: whether only the layers of type `sliding_attention` slide; otherwise every layer does.
    """

    width: int
    by_type: bool


def named_window(model: PreTrainedModel) -> Window | None:
    """Return the window that a model's settings name, None if they name none."""
    width = sliding_window_of(model)
    by_type = getattr(model.config.get_text_config(), "layer_types", None) is not None
    return Window(width, by_type) if width else None


def use_window(model: PreTrainedModel, window: Window | None) -> None:
    """Set the window of all later rows of a model; None for no window in their masks."""
    setattr(model, _WINDOW, window)


def with_window(model: PreTrainedModel, mask: Tensor, position_ids: Tensor, n_past: int = 0) -> Masks:
    """Return the masks of a batch in a model's layers.

    Args:
        model: a causal language model.
        mask: (B, 1, T, p + T) additive mask without a window, cached keys first.
        position_ids: (B, T).
        n_past: number p of cached keys, at the positions 0 to p - 1.
    """
    window: Window | None = getattr(model, _WINDOW, None)
    if window is None or int(position_ids.max()) < window.width:
        return mask
    checkpoint()
    query = position_ids.to(mask.device)
    key = torch.cat([torch.arange(n_past, device=mask.device).expand(len(query), -1), query], 1)
    far = key[:, None, :] <= query[:, :, None] - window.width
    near = mask.masked_fill(far[:, None], torch.finfo(mask.dtype).min)
    return {"full_attention": mask, "sliding_attention": near} if window.by_type else near


def with_each(masks: Masks, change: Callable[[Tensor], Tensor]) -> Masks:
    """Return masks with a change of each."""
    return {kind: change(mask) for kind, mask in masks.items()} if isinstance(masks, dict) else change(masks)
