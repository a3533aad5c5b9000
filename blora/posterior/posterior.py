"""The posterior over a whole adapter: two factors a module, sampled, averaged and charged together."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from blora.config import PosteriorConfig
from blora.posterior.draws import Draws, Factors
from blora.posterior.inducing import InducingFactor
from blora.posterior.noise import generator_of, standard_normal
from blora.posterior.point import PointFactor

__all__ = ["Posterior"]

Factor = InducingFactor | PointFactor


class Posterior(nn.Module):
    """Independent posteriors over the factors A (rank, d_in) and B (d_out, rank) of each adapted module.

    Parameters are float32 whatever the base model's dtype. The mean of B starts at zero, so an untrained posterior
    leaves the base model as it is in the mean.

    Args:
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
        config: rank, alpha, method and the family's settings.
        seed: of the initial parameters.
        make: makes a factor of its rows, its columns, the standard deviation of its mean at the start and its name,
            which ends in .A or .B; by default that of config.method.
    """

    def __init__(
        self,
        modules: Mapping[str, tuple[int, int]],
        config: PosteriorConfig,
        seed: int,
        *,
        make: Callable[[int, int, float, str], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.modules_shape = dict(modules)
        generator = generator_of(seed)
        make = make or _factor_maker(config, generator)
        self.A = nn.ModuleDict()
        self.B = nn.ModuleDict()
        for name, (d_out, d_in) in modules.items():
            # The spread of PEFT's initial A: uniform on +-1/sqrt(d_in).
            self.A[_key(name)] = make(config.rank, d_in, 1 / math.sqrt(3 * d_in), f"{name}.A")
            self.B[_key(name)] = make(d_out, config.rank, 0.0, f"{name}.B")

    @property
    def scaling(self) -> float:
        """Alpha / rank."""
        return self.config.alpha / self.config.rank

    def sample(self, n_samples: int, generator: torch.Generator) -> Draws:
        """S exact posterior draws of every factor, differentiable; the first k do not depend on S."""
        noise = standard_normal(n_samples, generator)
        return self._collect(lambda factor: factor.sample_from(noise))

    def mean(self) -> Draws:
        """The posterior mean as one draw; E[B] E[A] is E[B A], for the factors are independent."""
        return self._collect(lambda factor: factor.mean()[None])

    def set_mean(self, mean: Mapping[str, Factors]) -> None:
        """Starts from a LoRA: makes its factors the posterior's mean.

        Args:
            mean: A (1, rank, d_in) and B (1, d_out, rank) of each adapted module.

        Raises:
            ShapeError: if a factor has another shape.
            NumericalError: if the inducing weights are too few to reach it.
        """
        for name in self.modules_shape:
            self.A[_key(name)].set_mean(mean[name].A[0])  # type: ignore[operator]
            self.B[_key(name)].set_mean(mean[name].B[0])  # type: ignore[operator]

    def widen(self, factor: float) -> None:
        """Multiplies the standard deviations of every factor, in place; the mean stays.

        Raises:
            ConfigError: if a lambda_ would reach lambda_max.
        """
        for side in (self.A, self.B):
            for weight in side.values():
                weight.widen(factor)  # type: ignore[operator]

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """KL[q || p] summed over every factor, in nats."""
        factors: list[Factor] = [*self.A.values(), *self.B.values()]  # type: ignore[list-item]
        terms = [factor.kl_divergence(generator) for factor in factors]
        return torch.stack(terms).sum()

    def _collect(self, weight: Callable[[Factor], Tensor]) -> Draws:
        return Draws(
            {
                name: Factors(weight(self.A[_key(name)]), weight(self.B[_key(name)]))  # type: ignore[arg-type]
                for name in self.modules_shape
            },
            self.scaling,
        )


def _key(name: str) -> str:
    """A module's name as a key of a ModuleDict, which allows no dots."""
    return name.replace(".", "/")


def _factor_maker(config: PosteriorConfig, generator: torch.Generator) -> Callable[[int, int, float, str], Factor]:
    if config.method == "lora":
        return lambda p, q, mean_std, name: PointFactor(p, q, mean_std, generator)
    return lambda p, q, mean_std, name: InducingFactor(p, q, config, mean_std, generator, name)
