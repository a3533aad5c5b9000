import math

import pytest
import torch
from torch import Tensor

from blora.config import PosteriorConfig
from blora.errors import ConfigError
from blora.posterior.bank import SampleBank
from blora.posterior.draws import Draws, use_draws
from blora.posterior.families import FAMILIES
from blora.posterior.inducing import InducingFactor
from blora.posterior.posterior import Posterior
from tests.scenarios import injected, merged, tiny_model

MODULES = {"model.layers.0.q_proj": (12, 10), "model.layers.1.q_proj": (12, 10), "model.layers.1.v_proj": (6, 10)}
SMALL = {"rank": 3, "alpha": 6.0, "inducing_rows": 4, "inducing_cols": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(seed: int = 0, **config: object) -> Posterior:
    return Posterior(MODULES, PosteriorConfig(**{**SMALL, **config}), seed)  # type: ignore[arg-type]


def factors_of(draws: Draws) -> list[Tensor]:
    return [tensor for f in draws.factors.values() for tensor in (f.A, f.B)]


def equal(first: Draws, second: Draws) -> bool:
    return all(torch.equal(a, b) for a, b in zip(factors_of(first), factors_of(second), strict=True))


@pytest.fixture(params=FAMILIES)
def posterior(request: pytest.FixtureRequest) -> Posterior:
    """Away from its initial values, where the mean of B is zero."""
    made = make(family=request.param)
    source = generator(9)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=source)
    return made


def test_draws_have_the_shapes_of_lora_factors(posterior: Posterior) -> None:
    draws = posterior.sample(5, generator())
    assert draws.n_samples == 5
    assert draws.scaling == 2.0
    assert list(draws.factors) == list(MODULES)
    for name, (d_out, d_in) in MODULES.items():
        assert draws.factors[name].A.shape == (5, 3, d_in)
        assert draws.factors[name].B.shape == (5, d_out, 3)


def test_first_four_of_sixteen_draws_are_the_four(posterior: Posterior) -> None:
    four, sixteen = posterior.sample(4, generator()), posterior.sample(16, generator())
    for a, b in zip(factors_of(four), factors_of(sixteen.first(4)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_seed_determines_every_bit_of_a_draw(posterior: Posterior) -> None:
    assert equal(posterior.sample(3, generator(1)), posterior.sample(3, generator(1)))
    assert not equal(posterior.sample(3, generator(1)), posterior.sample(3, generator(2)))


def test_the_seed_determines_the_initial_parameters() -> None:
    def values(seed: int) -> list[Tensor]:
        return list(make(seed).state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(values(3), values(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(values(3), values(4), strict=True))


def test_construction_and_sampling_leave_the_global_generator_alone(posterior: Posterior) -> None:
    before = torch.get_rng_state()
    make(family=posterior.config.family)
    posterior.sample(2, generator())
    posterior.mean()
    posterior.kl_divergence(generator())
    SampleBank.draw(posterior, "digest", 2, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["bayesian", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_update_is_zero_at_the_start(family: str, method: str) -> None:
    for factors in make(family=family, method=method).mean().factors.values():
        assert (factors.B @ factors.A).abs().max() < 1e-7
        assert factors.A.abs().max() > 0.01  # but A is not zero, so that B has a gradient


def test_parameters_are_float32() -> None:
    assert {p.dtype for p in make().parameters()} == {torch.float32}


def test_modules_and_draws_are_independent() -> None:
    n = 2000
    with torch.no_grad():
        draws = make().sample(n, generator())
    first, second = (draws.factors[f"model.layers.{k}.q_proj"] for k in (0, 1))
    scaled = {t: ((t - t.mean(0)) / t.std(0)).flatten(1) for t in (first.A, first.B, second.A, second.B)}
    # Two modules of one shape, and the two factors of a module: no correlation beyond 5.5 standard errors.
    for x, y in [(first.A, second.A), (first.B, second.B), (first.A, first.B)]:
        assert (scaled[x].mT @ scaled[y] / n).abs().max() < 5.5 / math.sqrt(n)
    for x in scaled.values():  # neighbouring draws
        assert (x[:-1].mT @ x[1:] / n).abs().max() < 5.5 / math.sqrt(n)


# The flow's mean is itself an estimate; the families' tests cover it.
@pytest.mark.parametrize("posterior", ["diagonal", "matrix_normal"], indirect=True)
def test_the_mean_of_the_update_is_the_product_of_the_means(posterior: Posterior) -> None:
    n = 5000
    with torch.no_grad():
        draws, mean = posterior.sample(n, generator()), posterior.mean()
        for name, factors in draws.factors.items():
            delta = factors.B @ factors.A
            expected = (mean.factors[name].B @ mean.factors[name].A)[0]
            assert ((delta.mean(0) - expected).abs() < 5.5 * delta.std(0) / math.sqrt(n)).all()


def test_kl_is_the_sum_over_every_factor() -> None:
    posterior = make()
    factors = [f for side in (posterior.A, posterior.B) for f in side.values()]
    assert len(factors) == 6
    expected = sum(f.kl_divergence(generator()) for f in factors)
    torch.testing.assert_close(posterior.kl_divergence(generator()), expected)


def test_draws_and_kl_reach_every_parameter(posterior: Posterior) -> None:
    draws = posterior.sample(2, generator())
    loss = sum(t.square().sum() for t in factors_of(draws)) + posterior.kl_divergence(generator())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in posterior.parameters())


def test_a_state_dict_restores_every_draw(posterior: Posterior) -> None:
    other = make(seed=77, family=posterior.config.family)
    assert not equal(other.sample(2, generator()), posterior.sample(2, generator()))
    other.load_state_dict(posterior.state_dict(), strict=True)
    assert equal(other.sample(2, generator()), posterior.sample(2, generator()))


def test_factors_carry_the_name_of_their_module_into_errors() -> None:
    names = {f.name for side in (make().A, make().B) for f in side.values() if isinstance(f, InducingFactor)}
    assert names == {f"{module}.{side}" for module in MODULES for side in "AB"}


# The point posterior: plain LoRA


def test_every_draw_of_plain_lora_is_its_mean() -> None:
    posterior = make(method="lora")
    draws, mean = posterior.sample(3, generator()), posterior.mean()
    for name, factors in draws.factors.items():
        assert torch.equal(factors.A, mean.factors[name].A.expand_as(factors.A))
        assert torch.equal(factors.B, mean.factors[name].B.expand_as(factors.B))


def test_plain_lora_is_charged_no_kl() -> None:
    assert make(method="lora").kl_divergence(generator()).item() == 0


def test_plain_lora_starts_with_the_spread_of_pefts_initial_values() -> None:
    wide = {"model.layers.0.q_proj": (64, 300)}
    posterior = Posterior(wide, PosteriorConfig(method="lora", rank=8), seed=0)
    A = posterior.mean().factors["model.layers.0.q_proj"].A
    assert A.std().item() == pytest.approx(1 / math.sqrt(3 * 300), rel=0.1)


# Collapse


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_collapsed_posterior_answers_as_plain_lora_with_its_mean(architecture: str) -> None:
    model, modules = injected(architecture)
    posterior = Posterior(modules, PosteriorConfig(**SMALL), seed=1)  # type: ignore[arg-type]
    with torch.no_grad():
        for side in (posterior.A, posterior.B):
            for factor in side.values():
                factor.family.inducing_mean += torch.randn(4, 4, generator=generator(3))
                factor.family.raw_scale.fill_(-200)  # softplus underflows to zero
                factor.raw_lambda.fill_(-200)
        draws, mean = posterior.sample(2, generator()), posterior.mean()
        ids = torch.arange(10).view(2, 5)
        with use_draws(draws):
            collapsed = model(input_ids=ids.repeat(2, 1)).logits.unflatten(0, (2, 2))
        plain = merged(tiny_model(architecture), mean, 0)(input_ids=ids).logits
        base = tiny_model(architecture)(input_ids=ids).logits
    for s in range(2):
        torch.testing.assert_close(collapsed[s], plain, rtol=0, atol=1e-5)
    assert (plain - base).abs().max() > 0.01


# Widening


@pytest.mark.parametrize("factor", [0.5, 1.5, 4.0])
def test_a_wider_posterior_can_be_made_again_from_its_config(factor: float) -> None:
    posterior = make()
    before = [weight.lambda_.item() for weight in posterior.A.values()]
    posterior.widen(factor)
    again = Posterior(posterior.modules_shape, posterior.config, 5)
    again.load_state_dict(posterior.state_dict())
    assert posterior.config.lambda_max == factor * PosteriorConfig(**SMALL).lambda_max  # type: ignore[arg-type]
    for wide in (posterior, again):
        after = [weight.lambda_.item() for weight in wide.A.values()]
        assert after == pytest.approx([factor * value for value in before])


@pytest.mark.parametrize("method", ["bayesian", "lora"])
@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_not_positive_and_finite_is_refused(factor: float, method: str) -> None:
    with pytest.raises(ConfigError, match="expected a positive finite factor"):
        make(method=method).widen(factor)
