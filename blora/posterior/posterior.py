"""The posterior over a whole adapter: two independent factors a module, sampled, averaged and charged together."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from blora.config import PosteriorConfig
from blora.errors import ConfigError
from blora.posterior.draws import Draws, Factors
from blora.posterior.inducing import InducingFactor, check_width
from blora.posterior.inject import layer_index
from blora.posterior.noise import Noise, generator_of, standard_normal
from blora.posterior.point import PointFactor

__all__ = ["MakeFactor", "Posterior", "is_point", "module_key"]

# Makes a factor of its rows, its columns, the standard deviation of its mean at the start and its name, which ends in
# .A or .B.
MakeFactor = Callable[[int, int, float, str], nn.Module]


class Posterior(nn.Module):
    """A distribution over the factors A (rank, d_in) and B (d_out, rank) of each adapted module.

    Parameters are float32 whatever the base model's dtype. The mean of B starts at zero, so an untrained posterior
    leaves the base model as it is in the mean.

    Args:
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
        config: rank, alpha, method and the family's settings.
        seed: of the initial parameters.
        make: makes the factors; by default those of config.method and config.bayesian_layers.

    Raises:
        ConfigError: if a layer in config.bayesian_layers has no adapted module.
    """

    def __init__(
        self,
        modules: Mapping[str, tuple[int, int]],
        config: PosteriorConfig,
        seed: int,
        *,
        make: MakeFactor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.modules_shape = dict(modules)
        adapted = {layer_index(name) for name in modules}
        if missing := sorted(set(config.bayesian_layers or ()) - adapted):
            raise ConfigError(
                f"got Bayesian layers {missing} that are not adapted, expected some of the adapted layers"
            )
        make = make or _factor_maker(config, generator_of(seed))
        self.A = nn.ModuleDict()
        self.B = nn.ModuleDict()
        for name, (d_out, d_in) in modules.items():
            # The spread of PEFT's initial A: uniform on +-1/sqrt(d_in).
            self.A[module_key(name)] = make(config.rank, d_in, 1 / math.sqrt(3 * d_in), f"{name}.A")
            self.B[module_key(name)] = make(d_out, config.rank, 0.0, f"{name}.B")

    @property
    def scaling(self) -> float:
        """Alpha / rank."""
        return self.config.alpha / self.config.rank

    def sample(self, n_samples: int, generator: torch.Generator) -> Draws:
        """Return S exact posterior draws of every factor, differentiable; the first k do not depend on S."""
        return self.sample_from(standard_normal(n_samples, generator))

    def sample_from(self, noise: Noise) -> Draws:
        """Return exact draws of every factor from the caller's noise, differentiable."""
        return Draws(self._collect(lambda factor: factor.sample_from(noise)), self.scaling, noise.n_samples)

    def mean(self) -> Draws:
        """Return the LoRA whose update is the posterior's mean, as one draw.

        The factors are independent, so that E[B A] is E[B] E[A].
        """
        return Draws(self._collect(lambda factor: factor.mean()[None]), self.scaling, 1)

    def set_mean(self, mean: Mapping[str, Factors]) -> None:
        """Start from a LoRA: make its factors the mean.

        Args:
            mean: A (1, rank, d_in) and B (1, d_out, rank) of each adapted module.

        Raises:
            ShapeError: if a factor has another shape.
            NumericalError: if the inducing weights are too few to represent the LoRA.
        """
        for name in self.modules_shape:
            self.A[module_key(name)].set_mean(mean[name].A[0])  # type: ignore[operator]
            self.B[module_key(name)].set_mean(mean[name].B[0])  # type: ignore[operator]

    def widen(self, factor: float) -> None:
        """Multiply the standard deviations of every factor, in place, and lambda_max with them.

        The means stay, except for flows: there the factor applies to the base, and the mean moves slightly.

        Raises:
            ConfigError: if the factor is not positive and finite.
        """
        check_width(factor)
        for weight in (*self.A.values(), *self.B.values()):
            weight.widen(factor)  # type: ignore[operator]
        if self.config.method == "bayesian":
            self.config = replace(
                self.config,
                lambda_max=factor * self.config.lambda_max,
                lambda_init=factor * self.config.lambda_init,
            )

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """Return KL[q || p] summed over every factor, in nats."""
        factors = [*self.A.values(), *self.B.values()]
        return torch.stack([factor.kl_divergence(generator) for factor in factors]).sum()  # type: ignore[operator]

    def _collect(self, weight: Callable[[InducingFactor | PointFactor], Tensor]) -> dict[str, Factors]:
        return {
            name: Factors(weight(self.A[module_key(name)]), weight(self.B[module_key(name)]))  # type: ignore[arg-type]
            for name in self.modules_shape
        }


def module_key(name: str) -> str:
    """Return a module's name as a key of a ModuleDict, which allows no dots."""
    return name.replace(".", "/")


def is_point(name: str, config: PosteriorConfig) -> bool:
    """Return whether the factors of a module are points, for plain LoRA or in a layer that is not Bayesian."""
    layers = config.bayesian_layers
    return config.method == "lora" or (layers is not None and layer_index(name) not in layers)


def _factor_maker(config: PosteriorConfig, generator: torch.Generator) -> MakeFactor:
    def make(p: int, q: int, mean_std: float, name: str) -> InducingFactor | PointFactor:
        if is_point(name, config):
            return PointFactor(p, q, mean_std, generator)
        return InducingFactor(p, q, config, mean_std, generator, name)

    return make
