"""A small factor posterior in float64, and the same Gaussians as covariances written out in full.

vec stacks columns, so that vec(M X N^T) = (N kron M) vec(X) as in the equations of `blora.posterior.inducing`.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blora.config import PosteriorConfig
from blora.posterior.families import inverse_softplus
from blora.posterior.inducing import InducingFactor

# (p, q, m, n): fewer inducing weights than weights, and more (Z Z^T is then singular), on either side.
SHAPES = [(4, 3, 2, 2), (2, 5, 4, 3), (5, 2, 3, 4), (2, 3, 4, 5)]
SIGMA = 0.7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(
    shape: tuple[int, int, int, int] = SHAPES[0],
    *,
    family: str = "diagonal",
    lambda_max: float = 2.0,
    lambda_init: float = 1.0,
    scale: float = 0.5,
    mean_std: float = 0.4,
    prior_std: float = SIGMA,
    std: float = 0.3,
) -> InducingFactor:
    """A float64 factor whose parameters lie `std` off their initial values, but for lambda_."""
    p, q, m, n = shape
    config = PosteriorConfig(
        family=family,  # type: ignore[arg-type]
        inducing_rows=m,
        inducing_cols=n,
        prior_std=prior_std,
        lambda_max=lambda_max,
        lambda_init=lambda_init,
        scale_init=scale,
    )
    factor = InducingFactor(p, q, config, mean_std, generator(), "layer.B").double()
    source = generator(1)
    with torch.no_grad():
        for name, parameter in factor.named_parameters():
            if name != "raw_lambda":
                parameter += std * torch.randn(parameter.shape, generator=source, dtype=torch.float64)
        factor.raw_lambda.fill_(math.log(lambda_init / (lambda_max - lambda_init)))
    return factor


def set_to_prior(factor: InducingFactor) -> InducingFactor:
    """q(V) = N(0, I) and lambda_ = 1: the posterior is the prior. Needs lambda_max = 2."""
    with torch.no_grad():
        factor.family.inducing_mean.zero_()
        factor.family.raw_scale.fill_(inverse_softplus(1.0))
        factor.raw_lambda.zero_()
    return factor


def collapse(factor: InducingFactor) -> InducingFactor:
    """q(V) becomes a point at its mean."""
    with torch.no_grad():
        factor.family.raw_scale.fill_(-1e4)
    return factor


def vec(x: Tensor) -> Tensor:
    return x.mT.flatten(-2)


@dataclass
class BasisNoise:
    """Noise whose draw i is the i-th unit vector of the whole stream, and whose last draw is zero.

    A draw of W is affine in the noise, so these draws give its linear map and offset exactly.
    """

    size: int
    used: int = 0

    @property
    def n_samples(self) -> int:
        return self.size + 1

    def normal(self, *shape: int, like: Tensor) -> Tensor:
        block = torch.zeros(self.n_samples, math.prod(shape), dtype=like.dtype)
        index = torch.arange(math.prod(shape))
        block[self.used + index, index] = 1
        self.used += len(index)
        return block.view(self.n_samples, *shape)

    def like(self, tensor: Tensor) -> Tensor:
        return self.normal(*tensor.shape, like=tensor)


def exact_moments(factor: InducingFactor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of vec(W), from the linear map that `sample_from` applies to its noise."""
    (m, p), (n, q) = factor.Z_r.shape, factor.Z_c.shape
    noise = BasisNoise(m * n + (p + m) * (q + n))
    with torch.no_grad():
        draws = vec(factor.sample_from(noise))  # type: ignore[arg-type]
    assert noise.used == noise.size
    columns = draws[:-1] - draws[-1]  # (noise, p q)
    return draws[-1], columns.mT @ columns


@dataclass
class Dense:
    """The prior's matrices, written out from the factor's parameters by the textbook formulas."""

    factor: InducingFactor
    K_r: Tensor = field(init=False)
    K_c: Tensor = field(init=False)

    def __post_init__(self) -> None:
        f = self.factor
        self.K_r = (f.Z_r @ f.Z_r.mT + torch.diag(f.D_r**2)).detach()
        self.K_c = (f.Z_c @ f.Z_c.mT + torch.diag(f.D_c**2)).detach()

    @property
    def cov_U(self) -> Tensor:
        return torch.kron(self.K_c, self.K_r)

    @property
    def cov_W_U(self) -> Tensor:
        """Cov[vec W, vec U] of the prior: W and U share the part Z_r W Z_c^T."""
        return self.factor.prior_std * torch.kron(self.factor.Z_c, self.factor.Z_r).mT.detach()

    @property
    def gain(self) -> Tensor:
        """E[vec W | U] = gain vec U."""
        return self.cov_W_U @ torch.linalg.inv(self.cov_U)

    @property
    def conditional(self) -> Tensor:
        """Cov[vec W | U] of the prior."""
        dim = self.cov_W_U.shape[0]
        return self.factor.prior_std**2 * torch.eye(dim, dtype=torch.float64) - self.gain @ self.cov_W_U.mT

    def q_U(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of vec(U) under q, for the Gaussian families."""
        family = self.factor.family
        L_r, L_c = torch.linalg.cholesky(self.K_r), torch.linalg.cholesky(self.K_c)
        if hasattr(family, "row_factor"):
            cov_V = torch.kron(family.col_factor @ family.col_factor.mT, family.row_factor @ family.row_factor.mT)
        else:
            cov_V = torch.diag(vec(family.scale.square()))
        L = torch.kron(L_c, L_r)
        return (L @ vec(family.mean())).detach(), (L @ cov_V @ L.mT).detach()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=tolerance)
