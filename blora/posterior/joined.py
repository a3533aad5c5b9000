"""Joining of several adapters' draws, for forward passes whose rows belong to different adapters."""

from collections.abc import Sequence

import torch

from blora.errors import ShapeError
from blora.posterior.draws import Draws, Factors

__all__ = ["join"]


def join(adapters: Sequence[Draws]) -> Draws:
    """Return U * S draws, where draw u * S + s is draw s of adapter u, bound to one row each: see `Draws.for_rows`.

    Ranks, scalings and adapted modules may differ: lower ranks are padded with zeros, the scaling moves into B, and an
    adapter has zero factors for modules that it does not adapt. A module whose factors do not differ between the draws
    of any adapter has U slices in place of U * S.

    Args:
        adapters: U adapters with S draws each.

    Raises:
        ShapeError: if they have different numbers of draws.
    """
    counts = {draws.n_samples for draws in adapters}
    if len(counts) != 1:
        raise ShapeError(f"got adapters with {sorted(counts)} draws to join, expected equal numbers")
    names = dict.fromkeys(name for draws in adapters for name in draws.factors)
    n_draws = len(adapters) * counts.pop()
    return Draws({name: _joined(name, adapters) for name in names}, 1.0, n_draws, torch.arange(n_draws))


def _joined(name: str, adapters: Sequence[Draws]) -> Factors:
    found = [draws.factors.get(name) for draws in adapters]
    known = next(factors for factors in found if factors is not None)
    rank = max(factors.A.shape[1] for factors in found if factors is not None)
    n_slices = max(max(len(factors.A), len(factors.B)) for factors in found if factors is not None)
    A = known.A.new_zeros(len(adapters), n_slices, rank, known.A.shape[2])
    B = known.B.new_zeros(len(adapters), n_slices, known.B.shape[1], rank)
    for u, (draws, factors) in enumerate(zip(adapters, found, strict=True)):
        if factors is not None:
            A[u, :, : factors.A.shape[1]] = factors.A
            B[u, :, :, : factors.B.shape[2]] = draws.scaling * factors.B
    return Factors(A.flatten(0, 1), B.flatten(0, 1))
