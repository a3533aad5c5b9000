"""White noise for S draws at once, in which draw s never depends on how many draws were asked for.

Each draw owns a generator whose seed comes from the caller's. So the first four of sixteen draws are the four
draws that the same generator gives when asked for four: sample banks nest, up to the rounding of products of another
shape. Noise is made on the CPU, so that a seed means the same draw on every device.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Noise", "generator_of", "standard_normal"]


def generator_of(*seeds: int) -> torch.Generator:
    """Return a CPU generator seeded with the first 32 bits of a SHA-256 over all seeds.

    torch's own manual_seed keeps the lowest 32 bits of one seed, so that seeds 0 and 2**32 would draw the same numbers.
    Here every bit of every seed counts, and two different calls get the same generator with probability 2^-32.
    """
    digest = hashlib.sha256(repr(seeds).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))


class Noise:
    """A stream of standard-normal tensors with a leading draw dimension S."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    @property
    def n_samples(self) -> int:
        """S, the number of draws."""
        return len(self._generators)

    def normal(self, *shape: int, like: Tensor) -> Tensor:
        """(S, *shape) standard normals with the dtype and device of `like`."""
        draws = [torch.randn(shape, generator=g, dtype=like.dtype) for g in self._generators]
        return torch.stack(draws).to(like.device)

    def like(self, tensor: Tensor) -> Tensor:
        """(S, *tensor.shape) standard normals with the dtype and device of `tensor`."""
        return self.normal(*tensor.shape, like=tensor)


def standard_normal(n_samples: int, generator: torch.Generator) -> Noise:
    """Noise for `n_samples` draws; the generator advances by one seed a draw."""
    seeds = [int(torch.randint(2**62, (), generator=generator)) for _ in range(n_samples)]
    return Noise([generator_of(seed) for seed in seeds])
