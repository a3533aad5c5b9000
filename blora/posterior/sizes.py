"""Tensor shapes and memory of a posterior, computed from its settings before it is made."""

import math
from collections.abc import Iterator, Mapping

from blora.config import PosteriorConfig
from blora.posterior.families import FAMILIES, Shape
from blora.posterior.posterior import is_point, module_key

__all__ = ["memory_bytes", "tensor_shapes"]

FLOAT_BYTES = 4
# Bytes of Python's and torch's objects around one tensor.
OBJECT_BYTES = 4096
# Copies of a factor's noise, and of products of its size, during the making of draws.
NOISE_COPIES = 3


def tensor_shapes(modules: Mapping[str, tuple[int, int]], config: PosteriorConfig) -> Iterator[tuple[str, Shape]]:
    """Yield the name and the shape of each tensor in the state of `Posterior(modules, config)`.

    Args:
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
        config: rank, method and the family's settings.
    """
    for side, name, p, q in _factors(modules, config.rank):
        for rest, shape in _factor_shapes(name, p, q, config).items():
            yield f"{side}.{module_key(name)}.{rest}", shape


def memory_bytes(modules: Mapping[str, tuple[int, int]], config: PosteriorConfig, n_samples: int) -> int:
    """Return the most memory of a posterior and its draws, in bytes, while they are made and afterwards.

    Args:
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
        config: rank, method and the family's settings.
        n_samples: S, the draws.
    """
    n_tensors = n_parameters = n_drawn = noise = 0
    for _, name, p, q in _factors(modules, config.rank):
        shapes = _factor_shapes(name, p, q, config).values()
        n_tensors += len(shapes)
        n_parameters += sum(map(math.prod, shapes))
        if is_point(name, config):
            n_drawn += p * q
        else:
            n_drawn += n_samples * p * q
            noise = max(noise, n_samples * (p + config.inducing_rows) * (q + config.inducing_cols))
    # Parameters twice: as they were read, and in their modules.
    return FLOAT_BYTES * (2 * n_parameters + n_drawn + NOISE_COPIES * noise) + OBJECT_BYTES * n_tensors


def _factors(modules: Mapping[str, tuple[int, int]], rank: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield side, module, rows and columns of each factor."""
    for name, (d_out, d_in) in modules.items():
        yield "A", name, rank, d_in
        yield "B", name, d_out, rank


def _factor_shapes(name: str, p: int, q: int, config: PosteriorConfig) -> dict[str, Shape]:
    if is_point(name, config):
        return {"weight": (p, q)}
    m, n = config.inducing_rows, config.inducing_cols
    own: dict[str, Shape] = {"Z_r": (m, p), "Z_c": (n, q), "raw_D_r": (m,), "raw_D_c": (n,), "raw_lambda": ()}
    return own | {f"family.{rest}": shape for rest, shape in FAMILIES[config.family].shapes(m, n).items()}
