from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from benchmarks.calibration.baselines.blob import MeanFieldFactor, blob_factors
from blora.errors import ConfigError
from blora.posterior.bank import SampleBank
from blora.posterior.noise import generator_of, standard_normal
from blora.posterior.posterior import Posterior
from blora.training.lora.trainer import fit
from tests.scenarios import adapted_modules, tiny_base
from tests.training.toys import evaluate, labelled, toy_config, toy_data, toy_posterior


def factor(prior_std: float = 0.3, g_init: float = 0.5) -> MeanFieldFactor:
    return MeanFieldFactor(3, 5, 0.2, prior_std, g_init, generator_of(0)).double()


def posterior(**settings: float) -> Posterior:
    base = tiny_base()
    config = toy_posterior(base).config
    return Posterior(adapted_modules(base.model), config, 0, make=blob_factors(generator_of(0), **settings))


def test_the_moments_of_draws() -> None:
    field = factor()
    draws = field.sample_from(standard_normal(20000, generator_of(1)))
    assert draws.shape == (20000, 3, 5)
    std = field.raw_scale.square()
    assert ((draws.mean(0) - field.weight).abs() < 5 * std / 20000**0.5).all()
    torch.testing.assert_close(draws.std(0), std, rtol=0.03, atol=0)
    correlation = torch.corrcoef(draws.flatten(1).T) - torch.eye(15)
    assert correlation.abs().max() < 0.05


def test_the_kl_is_that_of_independent_gaussians() -> None:
    field = factor()
    prior = Normal(torch.zeros(3, 5, dtype=torch.float64), field.prior_std)
    expected = kl_divergence(Normal(field.weight, field.std), prior).sum()
    torch.testing.assert_close(field.kl_divergence(generator_of(0)), expected)


def test_the_kl_is_zero_at_the_prior() -> None:
    field = factor()
    field.set_mean(torch.zeros(3, 5))
    with torch.no_grad():
        field.raw_scale.fill_(field.prior_std**0.5)
    assert field.kl_divergence(generator_of(0)).abs() < 1e-12


def test_the_kl_alone_leads_to_the_prior() -> None:
    field = factor()
    optimizer = torch.optim.Adam(field.parameters(), lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        field.kl_divergence(generator_of(0)).backward()
        optimizer.step()
    assert field.kl_divergence(generator_of(0)) < 1e-4


def test_g_starts_where_the_paper_has_it() -> None:
    G = MeanFieldFactor(8, 200, 0.2, 0.2, 0.05, generator_of(0)).raw_scale
    assert G.min() >= 0.05 / 2**0.5
    assert G.max() <= 0.05
    assert G.std() > 0.003


def test_gradients_reach_means_and_spread() -> None:
    field = factor()
    field.sample_from(standard_normal(2, generator_of(0))).square().sum().backward()
    for parameter in field.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()


@pytest.mark.parametrize("settings", [{"prior_std": 0.0}, {"g_init": -1.0}, {"prior_std": float("inf")}])
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        posterior(**settings)


def test_draws_nest_and_b_is_a_point() -> None:
    many, few = (posterior().sample(n, generator_of(5)) for n in (6, 2))
    for name, factors in few.factors.items():
        assert torch.equal(many.factors[name].A[:2], factors.A)
        assert not torch.equal(factors.A[0], factors.A[1])
        assert not factors.B.any()


def test_a_learnable_set_is_learnt(tmp_path: Path) -> None:
    base = tiny_base()
    validation = labelled(base, toy_data(6, seed=1))
    before = evaluate(base.model, validation, None).metrics.nll
    learnt = posterior()
    start = learnt.kl_divergence(generator_of(0))
    config = toy_config(tmp_path, epochs=6, lora_learning_rate=2e-2)
    fit(base, learnt, labelled(base, toy_data(24)), validation, config)
    bank = SampleBank.draw(learnt, "toy", 4, config.seed)
    result = evaluate(base.model, validation, bank.draws)
    assert result.metrics.nll < 0.5 * before
    assert learnt.kl_divergence(generator_of(0)) < start
    assert result.mean_mutual_information > 0
