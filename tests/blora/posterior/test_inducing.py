"""The factor posterior in float64, against covariances written out in full."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from blora.config import PosteriorConfig
from blora.errors import ConfigError, NumericalError, ShapeError
from blora.posterior import inducing
from blora.posterior.families import FAMILIES, Flow, inverse_softplus
from blora.posterior.inducing import InducingFactor
from blora.posterior.noise import standard_normal

# (p, q, m, n): fewer inducing weights than weights, and more (Z Z^T is then singular), on either side.
from tests.blora.posterior.dense import (
    SHAPES,
    SIGMA,
    Dense,
    close,
    collapse,
    exact_moments,
    generator,
    make,
    set_to_prior,
    vec,
)

# The prior


@pytest.mark.parametrize("shape", SHAPES)
def test_the_conditional_covariance_is_the_closed_form_of_the_paper(shape: tuple[int, int, int, int]) -> None:
    f = make(shape)
    dense = Dense(f)
    P_r = f.Z_r.mT @ torch.linalg.inv(dense.K_r) @ f.Z_r
    P_c = f.Z_c.mT @ torch.linalg.inv(dense.K_c) @ f.Z_c
    eye = torch.eye(shape[0] * shape[1], dtype=torch.float64)
    close(dense.conditional, SIGMA**2 * (eye - torch.kron(P_c, P_r)))


@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_prior_weights_are_exactly_white_with_std_sigma(shape: tuple[int, int, int, int]) -> None:
    mean, covariance = exact_moments(set_to_prior(make(shape)))
    close(mean, torch.zeros_like(mean))
    close(covariance, SIGMA**2 * torch.eye(len(mean), dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_of_many_prior_draws_are_those_of_white_noise(shape: tuple[int, int, int, int]) -> None:
    n = 10_000
    with torch.no_grad():
        W = vec(set_to_prior(make(shape)).sample_from(standard_normal(n, generator(3))))
    dim = W.shape[1]
    # Five standard errors: sigma / sqrt(n) of a mean, sigma^2 sqrt((1 + delta_ij) / n) of a covariance entry.
    assert (W.mean(0).abs() < 5 * SIGMA / math.sqrt(n)).all()
    eye = torch.eye(dim, dtype=torch.float64)
    error = W.mT @ W / n - SIGMA**2 * eye
    assert (error.abs() < 5 * SIGMA**2 * ((1 + eye) / n).sqrt()).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_white_at_the_prior_whatever_jitter_was_needed(
    shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inducing, "JITTERS", (0.3,))
    mean, covariance = exact_moments(set_to_prior(make(shape)))
    close(covariance, SIGMA**2 * torch.eye(len(mean), dtype=torch.float64))


# Posterior draws


@pytest.mark.parametrize("shape", SHAPES)
def test_jitter_is_inducing_noise(shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    jittered, noisier = make(shape, lambda_init=0.6), make(shape, lambda_init=0.6)
    with torch.no_grad():
        for Z, D, raw_D in ((noisier.Z_r, noisier.D_r, noisier.raw_D_r), (noisier.Z_c, noisier.D_c, noisier.raw_D_c)):
            diagonal = Z.square().sum(1) + D.square()
            raw_D.copy_((D.square() + 0.3 * diagonal.mean()).sqrt().expm1().log())  # the inverse of softplus
        expected = exact_moments(noisier)
    monkeypatch.setattr(inducing, "JITTERS", (0.3,))
    for got, wanted in zip(exact_moments(jittered), expected, strict=True):
        close(got, wanted)


@pytest.mark.parametrize("family", ["diagonal", "matrix_normal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_draws_have_exactly_the_dense_mean_and_covariance(shape: tuple[int, int, int, int], family: str) -> None:
    f = make(shape, family=family, lambda_init=0.6)
    dense = Dense(f)
    mean_U, cov_U = dense.q_U()
    mean, covariance = exact_moments(f)
    close(mean, dense.gain @ mean_U)
    close(covariance, dense.gain @ cov_U @ dense.gain.mT + f.lambda_**2 * dense.conditional)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_collapsed_q_the_covariance_is_lambda_squared_times_the_conditional_one(
    shape: tuple[int, int, int, int],
) -> None:
    f = collapse(make(shape, lambda_init=0.6))
    _, covariance = exact_moments(f)
    close(covariance, 0.36 * Dense(f).conditional)


def test_moments_of_many_posterior_draws_are_the_dense_ones() -> None:
    n = 20_000
    f = make(SHAPES[1], lambda_init=0.6)
    with torch.no_grad():
        W = vec(f.sample_from(standard_normal(n, generator(4))))
    mean, covariance = exact_moments(f)
    deviation = W - mean
    variance = covariance.diagonal()
    assert (deviation.mean(0).abs() < 5 * (variance / n).sqrt()).all()
    # Isserlis: Var[x_i x_j] = C_ii C_jj + C_ij^2.
    spread = ((variance[:, None] * variance + covariance.square()) / n).sqrt()
    assert ((deviation.mT @ deviation / n - covariance).abs() < 5 * spread).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_is_the_average_of_the_draws(family: str) -> None:
    n = 10_000
    f = make(family=family, lambda_init=0.6, std=0.2)
    with torch.no_grad():
        W = f.sample_from(standard_normal(n, generator(5)))
        # The flow's mean is itself an average, over MEAN_DRAWS draws.
        error = W.std(0) * (1 / math.sqrt(n) + (1 / math.sqrt(Flow.MEAN_DRAWS) if family == "flow" else 0))
        assert ((W.mean(0) - f.mean()).abs() < 5 * error).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_collapsed_posterior_is_its_mean(shape: tuple[int, int, int, int]) -> None:
    f = collapse(make(shape))
    with torch.no_grad():
        f.raw_lambda.fill_(-60)
        draws = f.sample_from(standard_normal(3, generator()))
    close(draws, f.mean().expand_as(draws), 1e-15)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_draws_do_not_depend_on_how_many_are_asked_for(family: str) -> None:
    f = make(family=family)
    close(f.sample_from(standard_normal(4, generator())), f.sample_from(standard_normal(16, generator()))[:4], 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_determines_a_draw(family: str) -> None:
    f = make(family=family)
    assert torch.equal(f.sample_from(standard_normal(3, generator(1))), f.sample_from(standard_normal(3, generator(1))))
    assert not torch.equal(
        f.sample_from(standard_normal(3, generator(1))), f.sample_from(standard_normal(3, generator(2)))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_construction_and_sampling_leave_the_global_generator_alone(family: str) -> None:
    before = torch.get_rng_state()
    f = make(family=family)
    f.sample_from(standard_normal(2, generator()))
    f.mean()
    f.kl_divergence(generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mean_std_of_zero_starts_at_a_mean_of_zero(family: str) -> None:
    close(make(family=family, mean_std=0.0, std=0.0).mean(), torch.zeros(4, 3, dtype=torch.float64), 1e-12)


def test_the_initial_mean_has_about_the_spread_asked_for() -> None:
    config = PosteriorConfig()
    for p, q in [(8, 576), (576, 8)]:
        factor = InducingFactor(p, q, config, 0.02, generator(), "layer.A")
        assert 0.5 * 0.02 < factor.mean().std().item() < 1.1 * 0.02


# lambda_


@given(raw=st.floats(-700, 1e6), lambda_max=st.floats(1e-3, 10))
def test_lambda_is_positive_and_never_exceeds_its_cap(raw: float, lambda_max: float) -> None:
    f = make(lambda_max=lambda_max, lambda_init=lambda_max / 2)
    with torch.no_grad():
        f.raw_lambda.fill_(raw)
    assert 0 < f.lambda_.item() <= lambda_max


@pytest.mark.parametrize(("start", "cap"), [(0.1, 0.2), (0.001, 0.2), (0.0299, 0.03)])
def test_lambda_starts_where_the_config_says(start: float, cap: float) -> None:
    config = PosteriorConfig(lambda_init=start, lambda_max=cap)
    factor = InducingFactor(8, 4, config, 0.0, generator(), "layer.B")
    assert factor.lambda_.item() == pytest.approx(start, rel=1e-5)


# KL


@pytest.mark.parametrize("shape", SHAPES)
def test_kl_is_zero_at_the_prior(shape: tuple[int, int, int, int]) -> None:
    assert set_to_prior(make(shape)).kl_divergence(generator()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("family", ["diagonal", "matrix_normal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_is_that_of_the_dense_joint_gaussians_of_inducing_weights_and_weights(
    shape: tuple[int, int, int, int], family: str
) -> None:
    f = make(shape, family=family, lambda_init=0.6)
    dense = Dense(f)
    mean_U, cov_U = dense.q_U()

    def joint(mean: Tensor, covariance: Tensor, conditional: Tensor) -> MultivariateNormal:
        cross = dense.gain @ covariance
        full = torch.cat(
            [
                torch.cat([covariance, cross.mT], 1),
                torch.cat([cross, cross @ dense.gain.mT + conditional], 1),
            ]
        )
        return MultivariateNormal(torch.cat([mean, dense.gain @ mean]), (full + full.mT) / 2)

    q = joint(mean_U, cov_U, f.lambda_.detach() ** 2 * dense.conditional)
    p = joint(torch.zeros_like(mean_U), dense.cov_U, dense.conditional)
    close(f.kl_divergence(generator()), kl_divergence(q, p), 1e-8)


@given(
    mean=st.floats(-3, 3),
    scale=st.floats(0.01, 5),
    lambda_=st.floats(0.01, 1.99),
)
def test_kl_is_positive_away_from_the_prior(mean: float, scale: float, lambda_: float) -> None:
    f = set_to_prior(make())
    with torch.no_grad():
        f.family.inducing_mean[0, 0] = mean
        f.family.raw_scale[1, 1] = inverse_softplus(scale)
        f.raw_lambda.fill_(math.log(lambda_ / (2 - lambda_)))
    kl = f.kl_divergence(generator()).item()
    distance = max(abs(mean), abs(scale - 1), abs(lambda_ - 1))
    assert kl >= -1e-12
    if distance > 1e-3:
        assert kl > 0


def test_conditional_kl_is_about_three_nats_a_weight_at_a_small_lambda() -> None:
    f = set_to_prior(make(lambda_max=0.06, lambda_init=0.03, std=0.0))
    assert f.lambda_.item() == pytest.approx(0.03)
    assert f.kl_divergence(generator()).item() / 12 == pytest.approx(0.03**2 / 2 - math.log(0.03) - 0.5)


def test_flow_kl_starts_near_the_diagonal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 4000
    monkeypatch.setattr(Flow, "KL_DRAWS", n)
    diagonal, flow = (make(family=family, std=0.0) for family in ("diagonal", "flow"))
    mean = diagonal.family.mean()
    variance = (0.5 * (0.25 - 1) ** 2 + (0.5 * mean).square()).sum().item()
    difference = flow.kl_divergence(generator(2)) - diagonal.kl_divergence(generator(2))
    assert abs(difference.item()) < 5 * math.sqrt(variance / n)


# Gradients


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(3, 2, 2, 3), (2, 2, 3, 2)])
def test_draws_mean_and_kl_are_differentiable_in_every_parameter(
    shape: tuple[int, int, int, int], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flow, "HIDDEN", (3,))
    monkeypatch.setattr(Flow, "KL_DRAWS", 2)
    monkeypatch.setattr(Flow, "MEAN_DRAWS", 4)
    factor = make(shape, family=family, lambda_init=0.6)

    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = factor

        def forward(self) -> tuple[Tensor, Tensor, Tensor]:
            f = self.factor
            return f.sample_from(standard_normal(2, generator())), f.mean(), f.kl_divergence(generator(1))

    module = Everything()
    names, values = zip(*module.named_parameters(), strict=True)

    def call(*parameters: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), ())

    assert torch.autograd.gradcheck(call, tuple(value.detach().clone().requires_grad_() for value in values))


# Numerics


@pytest.mark.parametrize(("parameter", "side"), [("Z_r", "row"), ("Z_c", "column")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_failed_factorisation_names_the_factor_and_the_side(parameter: str, side: str, value: float) -> None:
    f = make()
    with torch.no_grad():
        getattr(f, parameter)[0, 0] = value
    with pytest.raises(NumericalError, match=rf"a {side} covariance of layer\.B that is not positive definite"):
        f.sample_from(standard_normal(1, generator()))
    with pytest.raises(NumericalError, match=rf"a {side} covariance of layer\.B"):
        f.mean()


def test_a_singular_covariance_is_rescued_by_jitter() -> None:
    f = make((2, 3, 4, 2)).float()  # m > p: Z_r Z_r^T has rank 2 of 4
    with torch.no_grad():
        f.raw_D_r.fill_(-200)
        assert f.D_r.square().sum() == 0
        assert f.sample_from(standard_normal(4, generator())).isfinite().all()


# Starting from a LoRA


@pytest.mark.parametrize("family", ["diagonal", "matrix_normal"])
@pytest.mark.parametrize("shape", [(3, 40, 4, 4), (40, 3, 4, 4), (3, 3, 3, 3)])
def test_the_mean_can_be_set_to_any_matrix_of_low_rank(shape: tuple[int, int, int, int], family: str) -> None:
    f = make(shape, family=family)
    wanted = torch.randn(*f.shape, generator=generator(1), dtype=torch.float64)
    f.set_mean(wanted)
    close(f.mean(), wanted, 1e-6)


def test_setting_the_mean_keeps_the_spread() -> None:
    f = make((3, 40, 4, 4))
    before = f.family.scale.clone(), f.lambda_.clone()
    f.set_mean(torch.randn(*f.shape, generator=generator(1), dtype=torch.float64))
    close(f.family.scale, before[0])
    close(f.lambda_, before[1])


def test_a_mean_beyond_the_inducing_weights_is_refused() -> None:
    with pytest.raises(NumericalError, match="2 x 2 inducing weights cannot reach"):
        make((3, 40, 2, 2)).set_mean(torch.randn(3, 40, generator=generator(1), dtype=torch.float64))


def test_a_mean_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"got a mean of shape \(40, 3\)"):
        make((3, 40, 4, 4)).set_mean(torch.zeros(40, 3, dtype=torch.float64))


def test_the_mean_of_a_flow_can_be_set_while_it_is_the_identity() -> None:
    config = PosteriorConfig(family="flow", inducing_rows=4, inducing_cols=4)
    f = InducingFactor(3, 40, config, 0.0, generator(), "layer.A").double()
    for wanted in (torch.randn(*f.shape, generator=generator(1), dtype=torch.float64), torch.zeros(*f.shape).double()):
        f.set_mean(wanted)
        close(f.mean(), wanted, 1e-6)


# Widening


@pytest.mark.parametrize("family", ["diagonal", "matrix_normal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_widening_multiplies_the_covariance_by_the_square(shape: tuple[int, int, int, int], family: str) -> None:
    f = make(shape, family=family, lambda_init=0.6)
    mean, covariance = exact_moments(f)
    f.widen(1.5)
    wider_mean, wider = exact_moments(f)
    close(wider_mean, mean)
    close(wider, 1.5**2 * covariance)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_positive_and_finite_is_refused(factor: float) -> None:
    f = make()
    before = {name: value.clone() for name, value in f.state_dict().items()}
    with pytest.raises(ConfigError, match="expected a positive finite factor"):
        f.widen(factor)
    assert all(torch.equal(value, before[name]) for name, value in f.state_dict().items())
