"""Mean-field variational LoRA (BLoB; Wang et al., 2024): A is Gaussian entry by entry, B a point.

    q(A_ij) = N(M_ij, G_ij^4), that is a standard deviation of G^2;   p(A_ij) = N(0, sigma_p^2)

Where it deviates from the paper: there is no flipout, a batch is divided among draws instead; the KL has the weight
of `TrainConfig.kl_weight` over the training rows and its own warm-up, not the paper's weights by batch; likelihood and
KL share one optimiser, where the paper's code takes AdamW and SGD.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from blora.errors import ConfigError
from blora.posterior.noise import Noise
from blora.posterior.point import PointFactor

__all__ = ["MeanFieldFactor", "blob_factors"]


class MeanFieldFactor(PointFactor):
    """A factor W (p, q) with independent Gaussian entries around the weight.

    Args:
        p: rows of W.
        q: columns of W.
        mean_std: standard deviation of the entries' means at the start.
        prior_std: sigma_p, the prior standard deviation of every entry.
        g_init: entries of G start uniform between g_init / sqrt(2) and g_init (the paper's epsilon).
        generator: source of the initial means and G.

    Raises:
        ConfigError: if prior_std or g_init is not positive.

    References:
        Wang et al., 2024. arXiv:2406.11675
    """

    def __init__(
        self, p: int, q: int, mean_std: float, prior_std: float, g_init: float, generator: torch.Generator
    ) -> None:
        for name, value in (("prior_std", prior_std), ("g_init", g_init)):
            if not 0 < value < math.inf:
                raise ConfigError(f"got {name} = {value}, expected a positive number")
        super().__init__(p, q, mean_std, generator)
        self.prior_std = prior_std
        low = g_init / math.sqrt(2)
        self.raw_scale = nn.Parameter(low + (g_init - low) * torch.rand(p, q, generator=generator))

    @property
    def std(self) -> Tensor:
        """Standard deviations, (p, q): the squares of the paper's G."""
        return self.raw_scale.square()

    def sample_from(self, noise: Noise) -> Tensor:
        """Draws of W, (S, p, q), differentiable in means and standard deviations."""
        return self.weight + self.std * noise.like(self.weight)

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """KL[q || N(0, sigma_p^2)] in nats, in closed form."""
        std, prior_std = self.std, self.prior_std
        spread = (std.square() + self.weight.square()) / (2 * prior_std**2)
        return (spread - std.log() + math.log(prior_std) - 0.5).sum()


def blob_factors(
    generator: torch.Generator, *, prior_std: float = 0.2, g_init: float = 0.05
) -> Callable[[int, int, float, str], PointFactor]:
    """Return the `make` of `Posterior` for BLoB: a mean field for every A, a plain point for every B.

    Args:
        generator: source of the initial parameters.
        prior_std: sigma_p; the default is that of the paper's code.
        g_init: see `MeanFieldFactor`; the default is that of the paper's code.
    """

    def make(p: int, q: int, mean_std: float, name: str) -> PointFactor:
        if name.endswith(".A"):
            return MeanFieldFactor(p, q, mean_std, prior_std, g_init, generator)
        return PointFactor(p, q, mean_std, generator)

    return make
