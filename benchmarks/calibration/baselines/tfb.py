"""Training-free Bayesianisation of a trained LoRA (TFB; Shi et al., 2024).

With the compact SVD B = U diag(d) V^T the update is B' A' with B' = U diag(d) and A' = V^T A. Row i of A' gets noise of
standard deviation sigma_q / d_i, so that the update gets U (sigma_q E) with white E: isotropic in the space that B
spans, whatever basis B happened to be trained in.

Where it deviates: draws hold the same product as B = U, A = diag(d) V^T A + sigma_q E, which divides by no d_i; and the
caller chooses sigma_q on labelled rows, where the paper takes the largest at which the predictive mean still agrees
with the LoRA's own answers.
"""

import math

import torch

from blora.errors import ConfigError
from blora.posterior.draws import Draws, Factors
from blora.posterior.noise import Noise, standard_normal

__all__ = ["isotropic_draws"]


@torch.no_grad()
def isotropic_draws(lora: Draws, scale: float, n_samples: int, generator: torch.Generator) -> Draws:
    """Return S draws of the posterior around a trained LoRA; draws nest, and differ in `scale` alone at equal seeds.

    Args:
        lora: the factors, one draw.
        scale: sigma_q, at least 0.
        n_samples: S.
        generator: of the noise.

    Raises:
        ConfigError: if there is not exactly one draw to start from, or the scale is negative or not finite.

    References:
        Shi et al., 2024. arXiv:2412.05723
    """
    if lora.n_samples != 1:
        raise ConfigError(f"got {lora.n_samples} draws to put noise on, expected a trained LoRA, which is one")
    if not 0 <= scale < math.inf:
        raise ConfigError(f"got a noise scale of {scale}, expected a number of at least 0")
    noise = standard_normal(n_samples, generator)
    noisy = {name: _noisy(factors, scale, noise) for name, factors in lora.factors.items()}
    return Draws(noisy, lora.scaling, n_samples)


def _noisy(factors: Factors, scale: float, noise: Noise) -> Factors:
    A, B = factors.A[0], factors.B[0]
    U, d, Vt = torch.linalg.svd(B, full_matrices=False)  # (d_out, k), (k,), (k, rank)
    projected = d[:, None] * (Vt @ A)  # (k, d_in)
    # Where B spans nothing there is no direction to put noise in.
    spanned = d > d.max() * max(B.shape) * torch.finfo(B.dtype).eps
    noisy = projected + scale * noise.like(projected)  # (S, k, d_in)
    return Factors(noisy, (U * spanned).expand(noise.n_samples, -1, -1))
