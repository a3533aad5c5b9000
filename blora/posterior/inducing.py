"""One LoRA factor W of shape (p, q) under a sparse-Gaussian-process posterior with inducing weights U (m, n).

Prior (arXiv:2105.14594, arXiv:2601.21003), with K_r = Z_r Z_r^T + diag(D_r^2) and K_c = Z_c Z_c^T + diag(D_c^2):

    vec(U) ~ N(0, K_c kron K_r),  T_r = Z_r^T K_r^-1,  T_c = K_c^-1 Z_c
    E[W | U] = sigma T_r U T_c,   Cov[W | U] = sigma^2 (I - (Z_c^T K_c^-1 Z_c) kron (Z_r^T K_r^-1 Z_r))

so that W ~ N(0, sigma^2 I). The posterior is q(U) q(W | U) with U = L_r V L_c^T, q(V) a family of `families.py`,
and q(W | U) the prior's conditional with its covariance times lambda_^2.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blora.config import PosteriorConfig
from blora.errors import ConfigError, NumericalError, ShapeError
from blora.posterior.families import FAMILIES, inverse_softplus
from blora.posterior.noise import Noise

__all__ = ["InducingFactor", "check_width"]

# Jitters relative to the mean of the diagonal, tried in order until the factorisation succeeds.
JITTERS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
# Largest relative error of `set_mean` that float32 rounding explains.
MEAN_ERROR = 1e-3
# Initial noise scale of the inducing inputs, whose rows start with unit norm.
INITIAL_D = 0.3


def check_width(factor: float) -> None:
    """Raise an error if standard deviations cannot be multiplied by a factor.

    Raises:
        ConfigError: if the factor is not positive and finite.
    """
    if not 0 < factor < math.inf:
        raise ConfigError(f"got scale {factor}, expected a positive finite factor; 1 changes nothing, above 1 widens")


class _Geometry(NamedTuple):
    """Matrices determined by the inducing inputs: K_r = L_r L_r^T = Z_r Z_r^T + diag(D_r^2), and K_c alike."""

    L_r: Tensor  # (m, m)
    L_c: Tensor  # (n, n)
    T_r: Tensor  # (p, m)
    T_c: Tensor  # (n, q)
    D_r: Tensor  # (m,)
    D_c: Tensor  # (n,)


class InducingFactor(nn.Module):
    """The posterior over one LoRA factor.

    Args:
        p: rows of W.
        q: columns of W.
        config: family, inducing size, prior_std (sigma), lambda_max and the initial lambda_.
        mean_std: initial standard deviation of the entries of W's mean; 0 for a mean of zero.
        generator: source of the initial inducing inputs and mean.
        name: the factor's name in error messages.
    """

    def __init__(
        self, p: int, q: int, config: PosteriorConfig, mean_std: float, generator: torch.Generator, name: str
    ) -> None:
        super().__init__()
        m, n = config.inducing_rows, config.inducing_cols
        self.shape = (p, q)
        self.name = name
        self.prior_std = config.prior_std
        self.lambda_max = config.lambda_max
        self.Z_r = nn.Parameter(torch.randn(m, p, generator=generator) / math.sqrt(p))
        self.Z_c = nn.Parameter(torch.randn(n, q, generator=generator) / math.sqrt(q))
        self.raw_D_r = nn.Parameter(torch.full((m,), inverse_softplus(INITIAL_D)))
        self.raw_D_c = nn.Parameter(torch.full((n,), inverse_softplus(INITIAL_D)))
        start = config.lambda_init / config.lambda_max
        self.raw_lambda = nn.Parameter(torch.tensor(math.log(start / (1 - start))))
        # T_r L_r and L_c^T T_c have singular values just below one: |W| is about sigma |V|.
        spread = mean_std * math.sqrt(p * q / (m * n)) / config.prior_std
        mean = spread * torch.randn(m, n, generator=generator)
        self.family = FAMILIES[config.family](mean, config.scale_init, generator)

    @property
    def lambda_(self) -> Tensor:
        """Conditional noise scale, a scalar in (0, lambda_max)."""
        return self.lambda_max * torch.sigmoid(self.raw_lambda)

    @property
    def D_r(self) -> Tensor:
        """Row noise scales, (m,)."""
        return F.softplus(self.raw_D_r)

    @property
    def D_c(self) -> Tensor:
        """Column noise scales, (n,)."""
        return F.softplus(self.raw_D_c)

    def _cholesky(self, Z: Tensor, D: Tensor, side: str) -> tuple[Tensor, Tensor]:
        """Return the Cholesky factor of K = Z Z^T + diag(D^2), and D with the jitter that K needed in it."""
        K = Z @ Z.mT + torch.diag(D.square())
        eye = torch.eye(len(D), dtype=K.dtype, device=K.device)
        L: Tensor
        for jitter in JITTERS:
            extra = jitter * K.diagonal().mean()
            L, info = torch.linalg.cholesky_ex(K + extra * eye)
            if bool((info == 0) & L.isfinite().all()):  # waits for a GPU once, not twice
                return L, (D.square() + extra).sqrt() if jitter else D
        raise NumericalError(
            f"got a {side} covariance of {self.name} that is not positive definite, expected a Cholesky factor; "
            "lower the learning rate, or raise the inducing noise"
        )

    def _geometry(self) -> _Geometry:
        L_r, D_r = self._cholesky(self.Z_r, self.D_r, "row")
        L_c, D_c = self._cholesky(self.Z_c, self.D_c, "column")
        T_r = torch.cholesky_solve(self.Z_r, L_r).mT
        T_c = torch.cholesky_solve(self.Z_c, L_c)
        return _Geometry(L_r, L_c, T_r, T_c, D_r, D_c)

    def sample_from(self, noise: Noise) -> Tensor:
        """Return exact posterior draws of W, (S, p, q), from the caller's noise, differentiable in every parameter.

        This is Matheron's rule with one white matrix G: W = sigma (T_r U T_c + lambda_ (E - T_r U_bar T_c)).
        """
        L_r, L_c, T_r, T_c, D_r, D_c = self._geometry()
        V, lambda_ = self.family.sample(noise), self.lambda_
        (m, p), (n, q) = self.Z_r.shape, self.Z_c.shape
        G = noise.normal(p + m, q + n, like=self.Z_r)  # (S, p + m, q + n)
        rows = self.Z_r @ G[:, :p] + D_r[:, None] * G[:, p:]  # Phi_r G
        U_bar = rows[:, :, :q] @ self.Z_c.mT + rows[:, :, q:] * D_c  # Phi_r G Phi_c^T
        U = L_r @ V @ L_c.mT
        return self.prior_std * (T_r @ (U - lambda_ * U_bar) @ T_c + lambda_ * G[:, :p, :q])

    def mean(self) -> Tensor:
        """Return E_q[W], (p, q)."""
        L_r, L_c, T_r, T_c, *_ = self._geometry()
        return self.prior_std * (T_r @ L_r @ self.family.mean() @ L_c.mT @ T_c)

    @torch.no_grad()
    def set_mean(self, W: Tensor) -> None:
        """Set the inducing inputs and the mean of q(V) so that E_q[W] is a given matrix of low rank.

        The singular vectors of W become inducing inputs, which makes W reachable; q keeps its spread.

        Args:
            W: (p, q).

        Raises:
            ShapeError: if W has another shape.
            NumericalError: if its rank is above min(m, n).
        """
        if W.shape != self.shape:
            raise ShapeError(f"got a mean of shape {tuple(W.shape)} for {self.name}, expected {self.shape}")
        left, _, right = torch.linalg.svd(W.to(self.Z_r), full_matrices=False)
        k = min(len(right), len(self.Z_r), len(self.Z_c))
        self.Z_r[:k] = left[:, :k].mT
        self.Z_c[:k] = right[:k]
        L_r, L_c, T_r, T_c, *_ = self._geometry()
        V = torch.linalg.pinv(T_r @ L_r) @ (W.to(T_r) / self.prior_std) @ torch.linalg.pinv(L_c.mT @ T_c)
        self.family.shift(V - self.family.mean())
        # Of a matrix of zeros, such as a new LoRA's second factor, the spread of a prior weight is the measure.
        error = (self.mean() - W).norm() / W.norm().clamp_min(self.prior_std)
        if not error <= MEAN_ERROR:
            raise NumericalError(
                f"got a mean for {self.name} that {len(self.Z_r)} x {len(self.Z_c)} inducing weights cannot reach "
                f"(relative error {error:.2g}); raise --inducing-rows and --inducing-cols to at least its rank"
            )

    def widen(self, factor: float) -> None:
        """Multiply the posterior's standard deviations by a factor, in place, and lambda_ and its cap with them.

        The mean stays, except for a flow: there the factor applies to the base, and the mean moves slightly.

        Raises:
            ConfigError: if the factor is not positive and finite.
        """
        check_width(factor)
        self.lambda_max *= factor
        self.family.widen(factor)

    def kl_divergence(self, generator: torch.Generator) -> Tensor:
        """Return KL[q || p] of this factor in nats: the KL of q(V) plus the KL of the conditional noise."""
        p, q = self.shape
        lambda_ = self.lambda_
        conditional = p * q * (0.5 * lambda_.square() - lambda_.log() - 0.5)
        return self.family.kl_divergence(generator) + conditional
