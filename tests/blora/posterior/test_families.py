import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from blora.config import FamilyName
from blora.posterior.families import (
    FAMILIES,
    Diagonal,
    Flow,
    MatrixNormal,
    inverse_softplus,
)
from blora.posterior.noise import standard_normal

M, N = 3, 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def perturbed(module: nn.Module, std: float = 0.5, seed: int = 1) -> nn.Module:
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=source, dtype=parameter.dtype)
    return module


def standard(dim: int) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))


def dense_kl(mean: Tensor, covariance: Tensor) -> Tensor:
    """KL[N(mean, covariance) || N(0, I)] from torch."""
    return kl_divergence(MultivariateNormal(mean, covariance), standard(len(mean)))


def make(name: str, mean: Tensor | None = None, scale: float = 0.5) -> nn.Module:
    mean = torch.zeros(M, N, dtype=torch.float64) if mean is None else mean
    return FAMILIES[name](mean, scale, generator()).double()


@pytest.mark.parametrize("value", [1e-6, 0.01, 0.3, 1.0, 20.0, 500.0])
def test_inverse_softplus_inverts_softplus(value: float) -> None:
    raw = torch.tensor(inverse_softplus(value), dtype=torch.float64)
    assert nn.functional.softplus(raw).item() == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_starts_at_the_mean_and_scale_asked_for(name: str) -> None:
    mean = random(M, N)
    family = make(name, mean, scale=0.3)
    torch.testing.assert_close(family.mean(), mean, rtol=0, atol=1e-12)
    draws = family.sample(standard_normal(4000, generator()))
    assert draws.shape == (4000, M, N)
    tolerance = 5 * 0.3 / math.sqrt(4000)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(draws.std(0), torch.full_like(mean, 0.3), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_is_the_average_of_the_draws(name: str) -> None:
    family = perturbed(make(name, random(M, N)), std=0.2)
    n = 20_000
    with torch.no_grad():
        draws = family.sample(standard_normal(n, generator(2)))
        # The flow's mean is itself an average, over MEAN_DRAWS draws.
        error = draws.std(0) * (1 / math.sqrt(n) + (1 / math.sqrt(Flow.MEAN_DRAWS) if name == "flow" else 0))
        assert ((draws.mean(0) - family.mean()).abs() < 5 * error).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_is_the_same_each_time(name: str) -> None:
    family = perturbed(make(name))
    assert torch.equal(family.mean(), family.mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_first_draws_do_not_depend_on_how_many_are_asked_for(name: str) -> None:
    family = perturbed(make(name))
    four, sixteen = (family.sample(standard_normal(s, generator())) for s in (4, 16))
    torch.testing.assert_close(four, sixteen[:4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    family = make(name)
    family.sample(standard_normal(2, generator()))
    family.mean()
    family.kl_divergence(generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_initial_parameters_come_from_the_given_generator_alone(name: str) -> None:
    torch.manual_seed(1)  # would show if the global generator were used
    first = FAMILIES[name](torch.zeros(M, N), 0.1, generator(3)).state_dict()
    torch.manual_seed(2)
    second = FAMILIES[name](torch.zeros(M, N), 0.1, generator(3)).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_every_name_that_a_config_allows_has_its_family() -> None:
    assert tuple(FAMILIES) == get_args(FamilyName)


@pytest.mark.parametrize("name", ["diagonal", "matrix_normal"])
def test_kl_is_zero_at_the_prior(name: str) -> None:
    assert make(name, scale=1.0).kl_divergence(generator()).item() == pytest.approx(0, abs=1e-12)


def test_the_flows_kl_estimate_is_zero_at_the_prior_without_noise() -> None:
    # At q = p every term of the Monte Carlo average is log q - log p = 0.
    assert make("flow", scale=1.0).kl_divergence(generator()).item() == pytest.approx(0, abs=1e-12)


@given(
    mean=st.lists(st.floats(-5, 5), min_size=M * N, max_size=M * N),
    scale=st.lists(st.floats(1e-3, 10), min_size=M * N, max_size=M * N),
)
def test_diagonal_kl_is_the_dense_one_and_never_negative(mean: list[float], scale: list[float]) -> None:
    family = make("diagonal", torch.tensor(mean, dtype=torch.float64).view(M, N))
    assert isinstance(family, Diagonal)
    with torch.no_grad():
        family.raw_scale.copy_(torch.tensor([inverse_softplus(s) for s in scale], dtype=torch.float64).view(M, N))
    got = family.kl_divergence(generator())
    expected = dense_kl(family.inducing_mean.flatten(), torch.diag(family.scale.flatten().square()))
    assert got.item() >= -1e-12
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 2**31), std=st.floats(0, 2))
def test_matrix_normal_kl_is_the_dense_one_and_never_negative(seed: int, std: float) -> None:
    family = perturbed(make("matrix_normal"), std, seed)
    assert isinstance(family, MatrixNormal)
    R, C = family.row_factor, family.col_factor
    # vec stacks columns, so the covariance of vec(V) is (C C^T) kron (R R^T).
    covariance = torch.kron(C @ C.mT, R @ R.mT)
    got = family.kl_divergence(generator())
    assert got.item() >= -1e-9
    torch.testing.assert_close(got, dense_kl(family.inducing_mean.mT.flatten(), covariance), rtol=1e-8, atol=1e-8)


def test_matrix_normal_factors_are_lower_triangular_with_a_positive_diagonal() -> None:
    family = perturbed(make("matrix_normal"), std=3.0)
    for factor in (family.row_factor, family.col_factor):
        assert torch.equal(factor, factor.tril())
        assert (factor.diagonal() > 0).all()


def test_flow_starts_as_the_identity() -> None:
    family = make("flow", random(M, N))
    noise = [standard_normal(5, generator()) for _ in range(2)]
    torch.testing.assert_close(family.sample(noise[0]), family.base.sample(noise[1]), rtol=0, atol=1e-12)


def test_flow_kl_at_the_start_is_that_of_its_diagonal_base(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 4000
    monkeypatch.setattr(Flow, "KL_DRAWS", n)
    family = make("flow", random(M, N), scale=0.5)
    exact = family.base.kl_divergence(generator()).item()
    # A term is const + z^2 / 2 (scale^2 - 1) + mean scale z, so its variance is known.
    variance = (0.5 * (0.25 - 1) ** 2 + (family.base.inducing_mean * 0.5).square()).sum().item()
    assert abs(family.kl_divergence(generator()).item() - exact) < 5 * math.sqrt(variance / n)


def test_flow_log_determinant_is_that_of_its_jacobian() -> None:
    family = perturbed(make("flow"), std=0.4)
    assert isinstance(family, Flow)
    start, image, log_det = family._push(standard_normal(1, generator()))

    def push(x: Tensor) -> Tensor:
        return family.transform()(x)

    torch.testing.assert_close(push(start.flatten()), image.flatten())
    jacobian = torch.autograd.functional.jacobian(push, start.flatten())
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian).logabsdet)


def test_flow_kl_is_the_average_log_ratio_of_densities_found_by_inverting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flow, "KL_DRAWS", 64)
    family = perturbed(make("flow", random(M, N)), std=0.4)
    V = family.sample(standard_normal(64, generator(7))).flatten(1)
    start, inverse_log_det = family.transform().inv.call_and_ladj(V)
    base = torch.distributions.Normal(family.base.inducing_mean.flatten(), family.base.scale.flatten())
    log_q = base.log_prob(start).sum(1) + inverse_log_det
    log_p = standard(M * N).log_prob(V)
    torch.testing.assert_close(family.kl_divergence(generator(7)), (log_q - log_p).mean(), rtol=1e-6, atol=1e-6)


def test_flow_kl_uses_only_the_given_generator() -> None:
    family = perturbed(make("flow"))
    assert torch.equal(family.kl_divergence(generator(1)), family.kl_divergence(generator(1)))
    assert not torch.equal(family.kl_divergence(generator(1)), family.kl_divergence(generator(2)))


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_and_kl_are_differentiable_in_every_parameter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flow, "HIDDEN", (4,))
    monkeypatch.setattr(Flow, "KL_DRAWS", 2)
    family = perturbed(make(name, random(M, N)), std=0.4)
    names, values = zip(*family.named_parameters(), strict=True)

    def call(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.family = family

            def forward(self) -> tuple[Tensor, Tensor]:
                return (
                    self.family.sample(standard_normal(2, generator())),
                    self.family.kl_divergence(generator(1)),
                )

        state = {f"family.{key}": value for key, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Both(), state, ())

    assert torch.autograd.gradcheck(call, tuple(value.detach().clone().requires_grad_() for value in values))


@pytest.mark.parametrize("name", ["diagonal", "matrix_normal"])
def test_widening_multiplies_every_deviation_from_the_mean(name: str) -> None:
    family = perturbed(make(name, random(M, N)), std=0.2)
    before = family.sample(standard_normal(5, generator())) - family.mean()
    mean = family.mean().clone()
    family.widen(1.7)
    torch.testing.assert_close(family.mean(), mean, rtol=0, atol=0)
    torch.testing.assert_close(family.sample(standard_normal(5, generator())) - family.mean(), 1.7 * before)


def test_widening_a_flow_widens_its_base() -> None:
    family = make("flow", random(M, N), scale=0.2)
    before = family.sample(standard_normal(5, generator())) - family.mean()
    family.widen(3.0)
    torch.testing.assert_close(family.sample(standard_normal(5, generator())) - family.mean(), 3.0 * before)


def test_widening_a_trained_flow_moves_its_mean_by_less_than_its_spread() -> None:
    family = perturbed(make("flow", random(M, N), scale=0.2), std=0.2)
    before, spread = family.mean().detach().clone(), family.sample(standard_normal(500, generator())).std(0)
    family.widen(1.5)
    moved = (family.mean() - before).abs()
    assert moved.max() > 1e-6
    assert (moved < 0.5 * spread).all()
