"""The posterior over a whole adapter: one mode, or a mixture of several with equal weights.

A mode is a separate posterior, trained from its own initial values on its own batches. Draw s comes from mode s mod K,
so that any number of draws is spread evenly over the modes: the diversity of an ensemble at no extra cost per draw.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from blora.config import PosteriorConfig
from blora.errors import ConfigError
from blora.posterior.draws import Draws, Factors
from blora.posterior.inducing import InducingFactor, check_width
from blora.posterior.inject import layer_index
from blora.posterior.mode import MakeFactor, Mode
from blora.posterior.noise import generator_of, standard_normal
from blora.posterior.point import PointFactor

__all__ = ["Posterior"]


class Posterior(nn.Module):
    """A distribution over the factors A (rank, d_in) and B (d_out, rank) of each adapted module.

    Args:
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
        config: rank, alpha, method, modes and the family's settings.
        seed: seed of the initial parameters.
        make: makes a factor; by default according to config.method and config.bayesian_layers.

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
        self.modes = nn.ModuleList(Mode(modules, config.rank, make) for _ in range(config.modes))

    @property
    def scaling(self) -> float:
        """Alpha / rank."""
        return self.config.alpha / self.config.rank

    def sample(self, n_samples: int, generator: torch.Generator, *, mode: int | None = None) -> Draws:
        """Return S exact posterior draws of every factor, differentiable; the first k do not depend on S.

        The number of modes K should divide S; otherwise the first S mod K modes have one draw more than the others. If
        S < K, the last K - S modes have no draw.

        Args:
            n_samples: S.
            generator: source of the noise.
            mode: draw from this mode alone; by default draw s comes from mode s mod K.
        """
        noise = standard_normal(n_samples, generator)
        if mode is not None or len(self.modes) == 1:
            return Draws(self._mode(mode or 0).sample_from(noise), self.scaling, n_samples)
        parts = [noise.every(len(self.modes), start=k) for k in range(min(len(self.modes), n_samples))]
        drawn = [self._mode(k).sample_from(part) for k, part in enumerate(parts)]
        counts = [part.n_samples for part in parts]
        return Draws(
            {
                name: Factors(
                    _interleave([d[name].A for d in drawn], counts), _interleave([d[name].B for d in drawn], counts)
                )
                for name in self.modules_shape
            },
            self.scaling,
            n_samples,
        )

    def mean(self) -> Draws:
        """Return the LoRA whose update is the posterior's mean, as one draw.

        Within a mode the factors are independent, so that E[B A] = E[B] E[A]. Over K modes the mean of these products
        is a LoRA of rank K * rank.
        """
        means = [self._mode(k).mean() for k in range(len(self.modes))]
        return Draws(
            {
                name: Factors(
                    torch.cat([mean[name].A for mean in means], 1),
                    torch.cat([mean[name].B for mean in means], 2) / len(means),
                )
                for name in self.modules_shape
            },
            self.scaling,
            1,
        )

    def set_mean(self, mean: Mapping[str, Factors]) -> None:
        """Set the mean of every mode to a LoRA's factors.

        Args:
            mean: A (1, rank, d_in) and B (1, d_out, rank) of each adapted module.

        Raises:
            ShapeError: if a factor has another shape.
            NumericalError: if the inducing weights are too few to represent the LoRA.
        """
        for k in range(len(self.modes)):
            self._mode(k).set_mean(mean)

    def widen(self, factor: float) -> None:
        """Multiply the standard deviations within every mode by a factor, in place, and lambda_max with them.

        The means stay, except for flows: there the factor applies to the base, and the mean moves slightly.

        Raises:
            ConfigError: if the factor is not positive and finite.
        """
        check_width(factor)
        for k in range(len(self.modes)):
            self._mode(k).widen(factor)
        if self.config.method == "bayesian":
            self.config = replace(
                self.config,
                lambda_max=factor * self.config.lambda_max,
                lambda_init=factor * self.config.lambda_init,
            )

    def kl_divergence(self, generator: torch.Generator, *, mode: int | None = None) -> Tensor:
        """Return KL[q || p] in nats, of one mode or averaged over all modes.

        The average bounds the KL of the mixture from above, by at most ln K nats (the KL is convex).
        """
        if mode is not None:
            return self._mode(mode).kl_divergence(generator)
        return torch.stack([self._mode(k).kl_divergence(generator) for k in range(len(self.modes))]).mean()

    def _mode(self, k: int) -> Mode:
        mode = self.modes[k]
        assert isinstance(mode, Mode)
        return mode


def _interleave(parts: list[Tensor], counts: list[int]) -> Tensor:
    """Return slices of K tensors in turn, (S, ...): part 0's first, part 1's first ...; counts[k] of part k."""
    spread = [part.expand(count, *part.shape[1:]) for part, count in zip(parts, counts, strict=True)]
    return torch.stack([spread[s % len(parts)][s // len(parts)] for s in range(sum(counts))])


def _factor_maker(config: PosteriorConfig, generator: torch.Generator) -> MakeFactor:
    def make(p: int, q: int, mean_std: float, name: str) -> InducingFactor | PointFactor:
        layers = config.bayesian_layers
        if config.method == "lora" or (layers is not None and layer_index(name) not in layers):
            return PointFactor(p, q, mean_std, generator)
        return InducingFactor(p, q, config, mean_std, generator, name)

    return make
