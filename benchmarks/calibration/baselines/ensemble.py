"""Deep ensembles (Lakshminarayanan et al., 2017): LoRAs trained from different seeds, as draws of one posterior."""

from collections.abc import Sequence

import torch

from blora.errors import ConfigError, ShapeError
from blora.posterior.draws import Draws, Factors

__all__ = ["ensemble"]


def ensemble(members: Sequence[Draws]) -> Draws:
    """Return the members' draws one after the other: K LoRAs of one draw each make S = K draws.

    Args:
        members: draws of the same modules with the same shapes and scaling.

    Raises:
        ConfigError: if there is no member, or one adapts other modules or scales them otherwise.
        ShapeError: if a member has another rank.

    References:
        Lakshminarayanan et al., 2017. arXiv:1612.01474
    """
    if not members:
        raise ConfigError("got no members, expected at least one trained LoRA")
    first = members[0]
    for k, member in enumerate(members):
        if member.factors.keys() != first.factors.keys() or member.scaling != first.scaling:
            raise ConfigError(
                f"got member {k} with other modules or another alpha / rank than member 0, expected the same; "
                "train all members with the same settings"
            )
        for name, factors in member.factors.items():
            if _shapes(factors) != _shapes(first.factors[name]):
                raise ShapeError(
                    f"got factors {_shapes(factors)} of {name} in member {k}, expected "
                    f"{_shapes(first.factors[name])} as in member 0; train all members with the same rank"
                )
    return Draws(
        {
            name: Factors(
                torch.cat([member.factors[name].A for member in members]),
                torch.cat([member.factors[name].B for member in members]),
            )
            for name in first.factors
        },
        first.scaling,
        sum(member.n_samples for member in members),
    )


def _shapes(factors: Factors) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(factors.A.shape[1:]), tuple(factors.B.shape[1:])
