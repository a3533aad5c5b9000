import pytest
import torch
from torch import Tensor

from benchmarks.calibration.baselines.tfb import isotropic_draws
from blora.errors import ConfigError
from blora.posterior.draws import Draws, Factors
from blora.posterior.noise import generator_of
from tests.scenarios import random_draws

D_OUT, D_IN, RANK = 5, 4, 3


def lora(seed: int = 0) -> Draws:
    """One draw in float64 whose B stretches its directions very differently."""
    generator = generator_of(seed)
    A = torch.randn(1, RANK, D_IN, generator=generator, dtype=torch.float64)
    B = torch.randn(1, D_OUT, RANK, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.1, 0.01])
    return Draws({"m": Factors(A, B)}, 2.0, 1)


def updates(draws: Draws) -> Tensor:
    """B A of every draw, (S, d_out, d_in)."""
    return draws.factors["m"].B @ draws.factors["m"].A


def test_without_noise_it_is_the_lora() -> None:
    start = lora()
    draws = isotropic_draws(start, 0.0, 3, generator_of(0))
    assert draws.scaling == start.scaling
    assert draws.factors["m"].A.shape == (3, RANK, D_IN)
    assert draws.factors["m"].B.shape == (3, D_OUT, RANK)
    torch.testing.assert_close(updates(draws), updates(start).expand(3, -1, -1))


def test_noise_is_isotropic_in_the_space_that_b_spans() -> None:
    start, scale, n_samples = lora(), 0.7, 20000
    draws = updates(isotropic_draws(start, scale, n_samples, generator_of(1)))
    noise = (draws - updates(start)).flatten(1)
    U = torch.linalg.svd(start.factors["m"].B[0], full_matrices=False).U
    expected = scale**2 * torch.kron(U @ U.mT, torch.eye(D_IN, dtype=torch.float64))
    assert noise.mean(0).abs().max() < 5 * scale / n_samples**0.5
    assert (torch.cov(noise.T) - expected).abs().max() < 6 * scale**2 / n_samples**0.5


def test_it_is_the_papers_noise_on_a() -> None:
    start, scale = lora(), 0.3
    A, B = start.factors["m"].A[0], start.factors["m"].B[0]
    U, d, Vt = torch.linalg.svd(B, full_matrices=False)
    draw = isotropic_draws(start, scale, 1, generator_of(2)).factors["m"]
    E = (draw.A[0] - d[:, None] * (Vt @ A)) / scale
    papers = (U * d) @ (Vt @ A + (scale / d)[:, None] * E)
    torch.testing.assert_close(updates(Draws({"m": draw}, 1.0, len(draw.A)))[0], papers)


def test_the_noise_does_not_depend_on_how_a_lora_is_factorised() -> None:
    start = lora()
    A, B = start.factors["m"].A, start.factors["m"].B
    R = torch.randn(RANK, RANK, generator=generator_of(3), dtype=torch.float64)
    other = Draws({"m": Factors(torch.linalg.solve(R, A), B @ R)}, 2.0, 1)
    a, b = (updates(isotropic_draws(x, 0.5, 20000, generator_of(4))).flatten(1) for x in (start, other))
    assert (torch.cov(a.T) - torch.cov(b.T)).abs().max() < 0.02


def test_a_b_of_lower_rank_gets_no_noise_beyond_it() -> None:
    start = lora()
    B = start.factors["m"].B.clone()
    B[..., 2] = B[..., 0]
    flat = Draws({"m": Factors(start.factors["m"].A, B), "zero": Factors(start.factors["m"].A, 0 * B)}, 2.0, 1)
    draws = isotropic_draws(flat, 0.5, 50, generator_of(0))
    noise = updates(draws) - updates(flat)
    assert torch.linalg.matrix_rank(noise.mT.flatten(0, 1)) == 2
    zero = draws.factors["zero"]
    assert not (zero.B @ zero.A).any()


def test_draws_nest_and_scale() -> None:
    start = lora()
    many, few = (updates(isotropic_draws(start, 0.5, n, generator_of(5))) for n in (6, 2))
    torch.testing.assert_close(many[:2], few, rtol=0, atol=0)
    wide = updates(isotropic_draws(start, 1.0, 2, generator_of(5)))
    torch.testing.assert_close(wide - updates(start), 2 * (few - updates(start)))


def test_what_cannot_be_bayesianised_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 draws"):
        isotropic_draws(random_draws({"m": (2, 3)}, 2), 0.1, 4, generator_of(0))
    with pytest.raises(ConfigError, match="noise scale of -1"):
        isotropic_draws(lora(), -1.0, 4, generator_of(0))
