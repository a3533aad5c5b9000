"""MC dropout in the LoRA layers (Gal and Ghahramani, 2016): each draw is one mask over a layer's input features.

Dropping an input feature of A is dropping a column of A, so a mask makes a draw of A, and the same mask holds for
every token and every row that the draw answers (the "variational" dropout of arXiv:1512.05287). B has none.

Where it deviates from LoRA's usual dropout (a mask of its own for every token of every row): in training a batch is
divided among draws, so rows share masks. Where it deviates from arXiv:1506.02142: no weight decay stands for the prior.
"""

from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from blora.errors import ConfigError
from blora.posterior.noise import Noise
from blora.posterior.point import PointFactor

__all__ = ["DropoutFactor", "dropout_factors"]


class DropoutFactor(PointFactor):
    """A factor W (p, q) whose columns drop out, scaled so that the mean of the draws is the weight.

    Args:
        p: rows of W.
        q: columns of W, the input features.
        mean_std: standard deviation of the entries at the start.
        rate: probability that a feature drops out, at least 0 and below 1.
        generator: source of the initial entries.

    Raises:
        ConfigError: if the rate is not one.

    References:
        Gal and Ghahramani, 2016. arXiv:1506.02142
    """

    def __init__(self, p: int, q: int, mean_std: float, rate: float, generator: torch.Generator) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"got a dropout rate of {rate}, expected at least 0 and below 1")
        super().__init__(p, q, mean_std, generator)
        self.rate = rate
        self.threshold = NormalDist().inv_cdf(rate) if rate > 0 else -torch.inf

    def sample_from(self, noise: Noise) -> Tensor:
        """Draws of W, (S, p, q): W with each column at zero with probability `rate`, else over 1 - `rate`."""
        kept = noise.normal(1, self.weight.shape[1], like=self.weight) > self.threshold  # (S, 1, q)
        return self.weight * kept / (1 - self.rate)


def dropout_factors(rate: float, generator: torch.Generator) -> Callable[[int, int, float, str], PointFactor]:
    """Return the `make` of `Posterior` for MC dropout: dropout for every A, a plain point for every B.

    From one seed the weights start where those of plain LoRA do.

    Args:
        rate: see `DropoutFactor`; PEFT's recipes have 0.05 to 0.1.
        generator: source of the initial weights.
    """

    def make(p: int, q: int, mean_std: float, name: str) -> PointFactor:
        if name.endswith(".A"):
            return DropoutFactor(p, q, mean_std, rate, generator)
        return PointFactor(p, q, mean_std, generator)

    return make
