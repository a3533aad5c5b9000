"""Variational families q(V) over the whitened inducing weights of one factor; the prior is p(V) = N(0, I).

Whitening (U = L_r V L_c^T) moves the geometry of the prior into `inducing.py`; here V is a plain (m, n) matrix.
"""

import math
from typing import Protocol

import torch
import zuko
from torch import Tensor, nn
from torch.nn import functional as F

from blora.config import FamilyName
from blora.posterior.noise import Noise, standard_normal

__all__ = ["FAMILIES", "Diagonal", "Family", "Flow", "MatrixNormal", "Shape"]

Shape = tuple[int, ...]


class Family(Protocol):
    """Protocol of a variational family over (m, n) inducing weights, made from a mean and a deviation."""

    def __init__(self, mean: Tensor, scale: float, generator: torch.Generator) -> None: ...

    @staticmethod
    def shapes(m: int, n: int) -> dict[str, Shape]:
        """Return the shape of each tensor in the state, by name, before there is one."""
        ...

    def sample(self, noise: Noise) -> Tensor:
        """Return draws of V, (S, m, n), differentiable in the parameters."""
        ...

    def mean(self) -> Tensor:
        """Return E_q[V], (m, n)."""
        ...

    def shift(self, by: Tensor) -> None:
        """Move every draw by a matrix (m, n), in place."""
        ...

    def widen(self, factor: float) -> None:
        """Multiply every standard deviation by a factor, in place."""
        ...

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """Return KL[q(V) || N(0, I)] in nats, a scalar; the generator is used only without a closed form."""
        ...


def inverse_softplus(value: float) -> float:
    """Return the x with softplus(x) = value, for value > 0."""
    return value + math.log(-math.expm1(-value))


def _inverse_softplus(value: Tensor) -> Tensor:
    """Return the inverse softplus of each element."""
    return value + torch.log(-torch.expm1(-value))


class _Gaussian(nn.Module):
    """Base of the Gaussian families, whose mean is a parameter (m, n)."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.inducing_mean = nn.Parameter(mean.clone())

    def mean(self) -> Tensor:
        """Return E_q[V], (m, n)."""
        return self.inducing_mean

    @torch.no_grad()
    def shift(self, by: Tensor) -> None:
        """Move every draw by a matrix (m, n), in place."""
        self.inducing_mean.add_(by)


class Diagonal(_Gaussian):
    """Independent Gaussians: V_ij ~ N(mean_ij, scale_ij^2)."""

    def __init__(self, mean: Tensor, scale: float, generator: torch.Generator) -> None:
        super().__init__(mean)
        self.raw_scale = nn.Parameter(torch.full_like(mean, inverse_softplus(scale)))

    @staticmethod
    def shapes(m: int, n: int) -> dict[str, Shape]:
        """Return the shape of each tensor in the state, by name."""
        return {"inducing_mean": (m, n), "raw_scale": (m, n)}

    @property
    def scale(self) -> Tensor:
        """Standard deviations, (m, n)."""
        return F.softplus(self.raw_scale)

    def sample(self, noise: Noise) -> Tensor:
        """Return draws of V, (S, m, n)."""
        return self.inducing_mean + self.scale * noise.like(self.inducing_mean)

    @torch.no_grad()
    def widen(self, factor: float) -> None:
        """Multiply every standard deviation by a factor, in place."""
        self.raw_scale.copy_(_inverse_softplus(factor * self.scale))

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """Return KL[q(V) || N(0, I)] in nats, in closed form."""
        variance = self.scale.square()
        return 0.5 * (variance + self.inducing_mean.square() - 1 - variance.log()).sum()


class MatrixNormal(_Gaussian):
    """Matrix normal V ~ MN(mean, R R^T, C C^T) with lower-triangular R (m, m) and C (n, n)."""

    def __init__(self, mean: Tensor, scale: float, generator: torch.Generator) -> None:
        super().__init__(mean)
        m, n = mean.shape
        raw_diagonal = inverse_softplus(math.sqrt(scale))
        self.raw_row = nn.Parameter(raw_diagonal * torch.eye(m, dtype=mean.dtype))
        self.raw_col = nn.Parameter(raw_diagonal * torch.eye(n, dtype=mean.dtype))

    @staticmethod
    def shapes(m: int, n: int) -> dict[str, Shape]:
        """Return the shape of each tensor in the state, by name."""
        return {"inducing_mean": (m, n), "raw_row": (m, m), "raw_col": (n, n)}

    @staticmethod
    def _cholesky_factor(raw: Tensor) -> Tensor:
        return raw.tril(-1) + torch.diag(F.softplus(raw.diagonal()))

    @property
    def row_factor(self) -> Tensor:
        """R, (m, m)."""
        return self._cholesky_factor(self.raw_row)

    @property
    def col_factor(self) -> Tensor:
        """C, (n, n)."""
        return self._cholesky_factor(self.raw_col)

    def sample(self, noise: Noise) -> Tensor:
        """Return draws of V, (S, m, n)."""
        return self.inducing_mean + self.row_factor @ noise.like(self.inducing_mean) @ self.col_factor.mT

    @torch.no_grad()
    def widen(self, factor: float) -> None:
        """Multiply every standard deviation by a factor, in place; R and C each take its square root."""
        for raw, chol in ((self.raw_row, self.row_factor), (self.raw_col, self.col_factor)):
            wider = math.sqrt(factor) * chol
            raw.copy_(wider.tril(-1) + torch.diag(_inverse_softplus(wider.diagonal())))

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """Return KL[q(V) || N(0, I)] in nats, in closed form."""
        m, n = self.inducing_mean.shape
        row, col = self.row_factor, self.col_factor
        trace = row.square().sum() * col.square().sum()
        log_det = n * row.diagonal().log().sum() + m * col.diagonal().log().sum()
        return 0.5 * (trace + self.inducing_mean.square().sum() - m * n) - log_det


class Flow(nn.Module):
    """A masked autoregressive flow (zuko) on top of the diagonal family: V = f(V_0), V_0 ~ Diagonal.

    The flow starts as the identity, so that its mean at step 0 is the given mean. Neither the mean nor the KL has a
    closed form; both are Monte Carlo estimates, the mean from a fixed seed.
    """

    HIDDEN = (64,)
    KL_DRAWS = 8
    MEAN_DRAWS = 512

    def __init__(self, mean: Tensor, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = Diagonal(mean, scale, generator)
        with torch.random.fork_rng(devices=[]):  # zuko initialises from the global generator
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.transform = zuko.flows.MaskedAutoregressiveTransform(mean.numel(), hidden_features=self.HIDDEN).to(
                mean.dtype
            )
        last = [layer for layer in self.transform.modules() if isinstance(layer, nn.Linear)][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @staticmethod
    def shapes(m: int, n: int) -> dict[str, Shape]:
        """Return the shape of each tensor in the state, by name."""
        [hidden] = Flow.HIDDEN
        found: dict[str, Shape] = {"transform.order": (m * n,)}
        found |= {f"base.{name}": shape for name, shape in Diagonal.shapes(m, n).items()}
        for place, shape in {0: (hidden, m * n), 2: (2 * m * n, hidden)}.items():
            layer = f"transform.hyper.{place}"
            found |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1], f"{layer}.mask": shape}
        return found

    def _push(self, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """Return base draws (S, m, n), their images (S, m, n) and log |det df/dV_0| (S,)."""
        start = self.base.sample(noise)
        image, log_det = self.transform().call_and_ladj(start.flatten(1))
        return start, image.view_as(start), log_det

    def sample(self, noise: Noise) -> Tensor:
        """Return draws of V, (S, m, n)."""
        return self._push(noise)[1]

    def mean(self) -> Tensor:
        """Return E_q[V] by antithetic Monte Carlo with a fixed seed, (m, n)."""
        noise = standard_normal(self.MEAN_DRAWS // 2, torch.Generator().manual_seed(0))
        half = noise.like(self.base.inducing_mean)
        both = self.base.inducing_mean + self.base.scale * torch.cat([half, -half])
        images: Tensor = self.transform()(both.flatten(1))
        return images.view_as(both).mean(0)

    def shift(self, by: Tensor) -> None:
        """Move every base draw by a matrix (m, n), in place; moves every draw alike while the flow is the identity."""
        self.base.shift(by)

    def widen(self, factor: float) -> None:
        """Multiply the base's standard deviations by a factor, in place; where f is curved, the mean moves slightly."""
        self.base.widen(factor)

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """Return a Monte Carlo estimate of KL[q(V) || N(0, I)] = E_q[log q(V) - log p(V)], in nats."""
        start, image, log_det = self._push(standard_normal(self.KL_DRAWS, generator))
        z = (start - self.base.inducing_mean) / self.base.scale
        log_q = (-0.5 * z.square() - self.base.scale.log()).flatten(1).sum(1) - log_det
        log_p = (-0.5 * image.square()).flatten(1).sum(1)
        return (log_q - log_p).mean()


FAMILIES: dict[FamilyName, type[Family]] = {"diagonal": Diagonal, "matrix_normal": MatrixNormal, "flow": Flow}
"""The class of each family."""
