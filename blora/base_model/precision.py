"""Reduced precision: the modules that compute below float32, and padding that limits the shapes of their products.

On CPUs oneDNN, which multiplies below float32, caches about half a MiB per weight and number of rows, and frees none of
it. With arbitrary batch sizes the cache would grow to hundreds of MiB. Rows are therefore padded to one of a few sizes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from blora.posterior.inject import layer_index
from blora.posterior.layer import linear_shape

__all__ = ["pad_rows", "rounded_modules", "set_precision"]

# The number of rows is rounded up to a multiple of LEAST_STEP, or by at most an eighth.
LEAST_STEP, STEPS_PER_OCTAVE = 8, 8


def pad_rows(rows: Tensor) -> Tensor:
    """Return rows (N, D), padded with rows of zeros to one of a few sizes on a CPU below float32, else unchanged.

    >>> [len(pad_rows(torch.zeros(n, 1, dtype=torch.bfloat16))) for n in (5, 16, 100, 1025)]
    [8, 16, 104, 1152]
    """
    if rows.device.type != "cpu" or rows.dtype == torch.float32:
        return rows
    step = max(LEAST_STEP, (1 << (len(rows) - 1).bit_length()) // (2 * STEPS_PER_OCTAVE))
    return F.pad(rows, (0, 0, 0, -len(rows) % step))


def _multiply(forward: Callable[[Tensor], Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
    """Return a linear layer's output (..., d_out) in float32, computed from x (..., d_in) in the given dtype."""
    rows = x.to(dtype).flatten(0, -2)
    return forward(pad_rows(rows))[: len(rows)].float().view(*x.shape[:-1], -1)


def set_precision(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the decoder's linear layers and experts to the dtype, and everything else to float32."""
    low = set(rounded_modules(model)) if dtype != torch.float32 else set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype if module in low else torch.float32)
        if module not in low:
            continue
        if linear_shape(module) is not None:
            module.forward = partial(_multiply, module.forward, dtype)
        else:
            module.register_forward_pre_hook(partial(_to_dtype, dtype), with_kwargs=True)
            module.register_forward_hook(_to_float32)


def rounded_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules whose weights `set_precision` rounds: experts, and all linear layers except the head."""
    head = model.get_output_embeddings()
    return [
        module
        for name, module in model.named_modules()
        if (linear_shape(module) is not None and module is not head)
        or (layer_index(name) is not None and _holds_experts(module))
    ]


def _holds_experts(module: nn.Module) -> bool:
    """Return whether a module owns stacked expert matrices, and no other parameters except their biases.

    Recurrent layers own such stacks too, but also vectors or submodules that must stay in float32; the kernel of a
    convolution has three dimensions as well.
    """
    dims = [parameter.ndim for parameter in module.parameters(recurse=False)]
    alone = len(dims) == sum(1 for _ in module.parameters())
    return 3 in dims and min(dims) >= 2 and alone and not isinstance(module, nn.Conv1d)


def _to_dtype(
    dtype: torch.dtype, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


def _to_float32(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.float()
