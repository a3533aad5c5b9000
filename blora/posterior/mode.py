"""One mode of a posterior: two independent factors a module, sampled, averaged and charged together."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from blora.posterior.draws import Factors
from blora.posterior.inducing import InducingFactor
from blora.posterior.noise import Noise
from blora.posterior.point import PointFactor

__all__ = ["MakeFactor", "Mode", "module_key"]

# Makes a factor of its rows, its columns, the standard deviation of its mean at the start and its name, which ends in
# .A or .B.
MakeFactor = Callable[[int, int, float, str], nn.Module]


class Mode(nn.Module):
    """Independent posteriors over the factors A (rank, d_in) and B (d_out, rank) of each adapted module.

    Parameters are float32 whatever the base model's dtype. The mean of B starts at zero, so an untrained mode leaves
    the base model as it is in the mean.

    Args:
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
        rank: of the update B A.
        make: makes the factors.
    """

    def __init__(self, modules: Mapping[str, tuple[int, int]], rank: int, make: MakeFactor) -> None:
        super().__init__()
        self.names = tuple(modules)
        self.A = nn.ModuleDict()
        self.B = nn.ModuleDict()
        for name, (d_out, d_in) in modules.items():
            # The spread of PEFT's initial A: uniform on +-1/sqrt(d_in).
            self.A[module_key(name)] = make(rank, d_in, 1 / math.sqrt(3 * d_in), f"{name}.A")
            self.B[module_key(name)] = make(d_out, rank, 0.0, f"{name}.B")

    def sample_from(self, noise: Noise) -> dict[str, Factors]:
        """Exact draws of every factor from the caller's noise, differentiable."""
        return self._collect(lambda factor: factor.sample_from(noise))

    def mean(self) -> dict[str, Factors]:
        """The mean of every factor, as one draw."""
        return self._collect(lambda factor: factor.mean()[None])

    def set_mean(self, mean: Mapping[str, Factors]) -> None:
        """Makes a LoRA's factors (1, ., .) the means."""
        for name in self.names:
            self.A[module_key(name)].set_mean(mean[name].A[0])  # type: ignore[operator]
            self.B[module_key(name)].set_mean(mean[name].B[0])  # type: ignore[operator]

    def widen(self, factor: float) -> None:
        """Multiplies the standard deviations of every factor, in place; the mean stays, but for a flow."""
        for side in (self.A, self.B):
            for weight in side.values():
                weight.widen(factor)  # type: ignore[operator]

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """KL[q || p] summed over every factor, in nats."""
        factors = [*self.A.values(), *self.B.values()]
        return torch.stack([factor.kl_divergence(generator) for factor in factors]).sum()  # type: ignore[operator]

    def _collect(self, weight: Callable[[InducingFactor | PointFactor], Tensor]) -> dict[str, Factors]:
        return {
            name: Factors(weight(self.A[module_key(name)]), weight(self.B[module_key(name)]))  # type: ignore[arg-type]
            for name in self.names
        }


def module_key(name: str) -> str:
    """A module's name as a key of a ModuleDict, which allows no dots."""
    return name.replace(".", "/")
