"""A noisy processor: every output of a linear layer below float32 moves by up to one unit in its last place.

Linear layers are torch's and GPT-2's. Processors add products up in different orders, and no machine shows what another
does. Random noise of the size of that rounding stands for all of them: products are added up in float32, rounded, and
moved. With NOISY_PROCESSOR_SEED in the environment and `noisy_site` on PYTHONPATH a process has it from its start.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SEED", "environment", "noisy_processor", "seed_from_environment"]

SEED = "NOISY_PROCESSOR_SEED"
LOW = (torch.bfloat16, torch.float16)
SITE = Path(__file__).parent / "noisy_site"


def seed_from_environment() -> int | None:
    """Return the seed of the noise that the environment asks for, None for a processor as it is."""
    return int(os.environ[SEED]) if SEED in os.environ else None


def environment(seed: int, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment in which every Python process computes with noise."""
    path = os.pathsep.join([str(SITE), *filter(None, [base.get("PYTHONPATH")])])
    return {**base, SEED: str(seed), "PYTHONPATH": path}


@contextmanager
def noisy_processor(seed: int) -> Iterator[None]:
    """Move the outputs of linear layers in bfloat16 and float16 within the block."""
    generator = torch.Generator().manual_seed(seed)
    linear, addmm = F.linear, torch.addmm

    def shaken(exact: Tensor, dtype: torch.dtype) -> Tensor:
        out = exact.to(dtype)
        steps = torch.randint(-1, 2, out.shape, generator=generator, dtype=torch.int16).to(out.device)
        # The neighbours of a floating-point number are the neighbours of its bits.
        moved = (out.view(torch.int16) + torch.where(out == 0, 0, steps)).view(dtype)
        return out + (moved - out).detach()  # gradients pass as if there were no noise

    def noisy_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dtype not in LOW:
            return linear(x, weight, bias)
        return shaken(linear(x.float(), weight.float(), bias.float() if bias is not None else None), x.dtype)

    def noisy_addmm(bias: Tensor, x: Tensor, weight: Tensor, **scales: float) -> Tensor:
        if x.dtype not in LOW:
            return addmm(bias, x, weight, **scales)
        return shaken(addmm(bias.float(), x.float(), weight.float(), **scales), x.dtype)

    F.linear, torch.addmm = noisy_linear, noisy_addmm
    try:
        yield
    finally:
        F.linear, torch.addmm = linear, addmm
