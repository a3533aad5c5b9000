"""One LoRA factor under a posterior collapsed to a point: plain LoRA, the baseline, in the same layers."""

import torch
from torch import Tensor, nn

from blora.errors import ShapeError
from blora.posterior.noise import Noise

__all__ = ["PointFactor"]


class PointFactor(nn.Module):
    """A factor W (p, q) without uncertainty; every draw is its mean, and its KL counts as zero.

    Args:
        p: rows of W.
        q: columns of W.
        mean_std: initial standard deviation of the entries.
        generator: source of the initial entries.
    """

    def __init__(self, p: int, q: int, mean_std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(mean_std * torch.randn(p, q, generator=generator))

    def sample_from(self, noise: Noise) -> Tensor:
        """Return a copy of the weight for all draws, (1, p, q)."""
        return self.weight[None].clone()

    def mean(self) -> Tensor:
        """Return the weight, (p, q)."""
        return self.weight

    @torch.no_grad()
    def set_mean(self, W: Tensor) -> None:
        """Set the weight to W, (p, q).

        Raises:
            ShapeError: if W has another shape.
        """
        if W.shape != self.weight.shape:
            raise ShapeError(f"got a mean of shape {tuple(W.shape)}, expected {tuple(self.weight.shape)}")
        self.weight.copy_(W)

    def widen(self, factor: float) -> None:
        """Do nothing: a point has no width."""

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """Return zero, by convention: a point has no finite divergence from the prior."""
        return self.weight.new_zeros(())
