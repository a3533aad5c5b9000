"""Training-free Bayesianisation of a trained LoRA (TFB; Shi et al., 2024).

With the compact SVD B = U diag(d) V^T the update is B' A' with B' = U diag(d) and A' = V^T A. Row i of A' gets noise of
standard deviation sigma_q / d_i, so that the update gets U (sigma_q E) with white E: isotropic in the space that B
spans, whatever basis B happened to be trained in. sigma_q is the largest at which a loss on an anchor set stays within
a tolerance of the LoRA's.

Where it deviates: draws hold the same product as B = U, A = diag(d) V^T A + sigma_q E, which divides by no d_i; the
search ends at the largest sigma_q found acceptable, where the published code ends at the smallest found unacceptable
and divides the change of the loss by the number of rows once more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from blora.errors import ConfigError, NumericalError
from blora.posterior.draws import Draws, Factors
from blora.posterior.noise import Noise, standard_normal
from training.evaluate import predict_all
from training.rows import LabelledRow

__all__ = ["isotropic_draws", "largest_scale", "with_own_answers"]


@torch.no_grad()
def isotropic_draws(lora: Draws, scale: float, n_samples: int, generator: torch.Generator) -> Draws:
    """S draws of the posterior around a trained LoRA; draws nest, and differ in `scale` alone at equal seeds.

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


def largest_scale(
    loss: Callable[[float], float], *, tolerance: float = 0.003, highest: float = 0.1, n_steps: int = 8
) -> float:
    """The largest scale in [0, highest] with loss(scale) <= (1 + tolerance) * loss(0), by bisection.

    It takes n_steps + 2 evaluations at most and is exact up to highest / 2^n_steps for a loss that rises with the
    scale, or falls first and rises then. Draw from the same seed at every scale, or the search follows the noise.

    Args:
        loss: of the predictive mean on the anchor rows, lower is better and positive: a NLL, or an error rate.
        tolerance: relative; the paper's code has 0.003 for the NLL of `with_own_answers`.
        highest: the upper end, returned where even that is acceptable. In units of the update's weights before
            alpha / rank; the paper's code has 0.015 for an 8B model.
        n_steps: halvings.

    Raises:
        ConfigError: for a negative tolerance, or a highest scale or number of steps that is not positive.
        NumericalError: if the LoRA's own loss is not finite.
    """
    if not 0 <= tolerance < math.inf or not 0 < highest < math.inf or n_steps < 1:
        raise ConfigError(
            f"got tolerance = {tolerance}, highest = {highest}, n_steps = {n_steps}, "
            "expected a tolerance of at least 0 and two positive numbers"
        )
    limit = (1 + tolerance) * loss(0.0)
    if not math.isfinite(limit):
        raise NumericalError(f"got a loss of {limit} without noise, expected a finite one; train the LoRA again")
    if loss(highest) <= limit:
        return highest
    low, high = 0.0, highest
    for _ in range(n_steps):
        middle = (low + high) / 2
        if loss(middle) <= limit:
            low = middle
        else:
            high = middle
    return low


def with_own_answers(model: PreTrainedModel, rows: Sequence[LabelledRow], lora: Draws) -> list[LabelledRow]:
    """The rows with the LoRA's most probable choices as labels: the paper's anchor set, which needs no true ones."""
    answers = predict_all(model, rows, lora)[0].argmax(-1)
    return [replace(row, label=int(answer)) for row, answer in zip(rows, answers, strict=True)]
