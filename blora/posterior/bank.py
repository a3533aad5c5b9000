"""The sample bank: S immutable draws of every factor, made once from a seed.

A bank carries the digest of its adapter, so that draws of a replaced adapter cannot be confused with the new one's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blora.errors import ConfigError, NumericalError
from blora.posterior.decision_head import HeadDraws, HeadPosterior
from blora.posterior.draws import Draws
from blora.posterior.noise import generator_of, standard_normal
from blora.posterior.posterior import Posterior

__all__ = ["SampleBank"]


@dataclass(frozen=True, slots=True)
class SampleBank:
    """Immutable draws of one posterior.

    Attributes:
        digest: content digest of the adapter.
        seed: seed of the draws.
        draws: the draws.
    """

    digest: str
    seed: int
    draws: Draws | HeadDraws

    @classmethod
    def draw(
        cls,
        posterior: Posterior | HeadPosterior,
        digest: str,
        n_samples: int,
        seed: int,
        before: Callable[[], None] | None = None,
    ) -> "SampleBank":
        """Return a bank of `n_samples` draws from a posterior; equal arguments give equal banks, and banks nest.

        Args:
            posterior: the posterior.
            digest: content digest of the adapter.
            n_samples: S.
            seed: seed of the draws.
            before: called before the draws of each factor are made, and may raise an exception.

        Raises:
            ConfigError: if n_samples is not positive.
            NumericalError: if a draw is not finite.
        """
        if n_samples < 1:
            raise ConfigError(f"got n_samples = {n_samples}, expected at least 1")
        with torch.no_grad():
            draws = posterior.sample_from(standard_normal(n_samples, generator_of(seed), before))
        drawn: dict[str, tuple[Tensor, ...]] = {"the head": (draws.weights,)} if isinstance(draws, HeadDraws) else {}
        lora = draws.lora if isinstance(draws, HeadDraws) else draws
        drawn |= {name: (factors.A, factors.B) for name, factors in lora.factors.items()}
        for name, tensors in drawn.items():
            if not all(tensor.isfinite().all() for tensor in tensors):
                raise NumericalError(f"got a draw of {name} that is not finite; train again, at a lower learning rate")
        return cls(digest, seed, draws)

    @property
    def n_weights(self) -> int:
        """Number of weights that a draw consists of."""
        if isinstance(self.draws, HeadDraws):
            return self.draws.weights[0].numel()
        return sum(factors.A[0].numel() + factors.B[0].numel() for factors in self.draws.factors.values())

    @property
    def n_samples(self) -> int:
        """S, the number of draws held."""
        return self.draws.n_samples

    def first(self, n_samples: int) -> Draws | HeadDraws:
        """Return the first `n_samples` draws, which equal a bank of that size from the same seed.

        Raises:
            ConfigError: if the bank holds fewer.
        """
        if not 1 <= n_samples <= self.n_samples:
            raise ConfigError(f"got n_samples = {n_samples}, expected 1 to {self.n_samples}, the size of the bank")
        return self.draws.first(n_samples)
