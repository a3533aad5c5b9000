"""White noise for S draws at once, in which draw s does not depend on S.

Each draw has its own generator, seeded from the caller's. So the first four of sixteen draws equal the four draws that
the same generator gives for S = 4: sample banks nest, up to the rounding of products of different shapes. Noise is made
on the CPU, so that a seed gives the same draw on every device.

Mirrored noise (antithetic variates) comes in pairs of opposite sign. The mean over a pair of whatever is linear in the
noise, as the logits of a head are in its weights, is then exact.

References:
    Hammersley and Morton, 1956, "A new Monte Carlo technique: antithetic variates".
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Noise", "generator_of", "standard_normal"]


def generator_of(*seeds: int) -> torch.Generator:
    """Return a CPU generator seeded with the first 32 bits of a SHA-256 over all seeds.

    torch's manual_seed uses only the lowest 32 bits of one seed, so that seeds 0 and 2**32 would draw the same numbers.
    Here every bit of every seed counts, and two different calls get the same generator with probability 2^-32.
    """
    digest = hashlib.sha256(repr(seeds).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))


class Noise:
    """A stream of standard-normal tensors with a leading draw dimension S.

    Args:
        generators: one of each draw.
        before: called before each tensor is made, because those of many draws take seconds.
        mirrored: whether every second draw has the noise of the draw before it with the opposite sign.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        before: Callable[[], None] | None = None,
        *,
        mirrored: bool = False,
    ) -> None:
        self._generators = generators
        self._before = before
        self._mirrored = mirrored

    @property
    def n_samples(self) -> int:
        """S, the number of draws."""
        return len(self._generators)

    def mirrored(self) -> "Noise":
        """Return the same noise of draws 0, 2, 4 ..., each followed by its mirror image."""
        return Noise(self._generators, self._before, mirrored=True)

    def normal(self, *shape: int, like: Tensor) -> Tensor:
        """Return (S, *shape) standard normals with the dtype and device of `like`."""
        if self._before is not None:
            self._before()
        generators = self._generators[::2] if self._mirrored else self._generators
        draws = torch.stack([torch.randn(shape, generator=g, dtype=like.dtype) for g in generators])
        if self._mirrored:
            draws = torch.stack([draws, -draws], 1).flatten(0, 1)[: self.n_samples]
        return draws.to(like.device)

    def like(self, tensor: Tensor) -> Tensor:
        """Return (S, *tensor.shape) standard normals with the dtype and device of `tensor`."""
        return self.normal(*tensor.shape, like=tensor)


def standard_normal(n_samples: int, generator: torch.Generator, before: Callable[[], None] | None = None) -> Noise:
    """Return noise for `n_samples` draws, see `Noise`; the generator advances by one seed per draw."""
    seeds = [int(torch.randint(2**62, (), generator=generator)) for _ in range(n_samples)]
    return Noise([generator_of(seed) for seed in seeds], before)
