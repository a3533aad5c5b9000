from pathlib import Path

import pytest
import torch

from benchmarks.calibration.baselines.dropout import DropoutFactor, dropout_factors
from blora.errors import ConfigError
from blora.posterior.bank import SampleBank
from blora.posterior.noise import generator_of, standard_normal
from blora.posterior.posterior import Posterior
from blora.training.lora.trainer import fit
from tests.scenarios import adapted_modules, tiny_base
from tests.training.toys import evaluate, labelled, toy_config, toy_data, toy_posterior

RATE = 0.25


def factor(rate: float = RATE) -> DropoutFactor:
    return DropoutFactor(3, 20, 1.0, rate, generator_of(0)).double()


def posterior(rate: float = RATE, seed: int = 0) -> Posterior:
    base = tiny_base()
    plain = toy_posterior(base)
    return Posterior(adapted_modules(base.model), plain.config, seed, make=dropout_factors(rate, generator_of(seed)))


def test_a_draw_drops_whole_columns_and_scales_the_rest() -> None:
    dropout = factor()
    draws = dropout.sample_from(standard_normal(50, generator_of(1)))
    assert draws.shape == (50, 3, 20)
    kept = (draws != 0).all(1)  # (S, q)
    assert torch.equal(kept, (draws != 0).any(1))
    expected = (dropout.weight / (1 - RATE))[None] * kept[:, None]
    torch.testing.assert_close(draws, expected, rtol=0, atol=0)


def test_the_moments_of_draws() -> None:
    dropout = factor()
    draws = dropout.sample_from(standard_normal(20000, generator_of(1)))
    mean, weight = draws.mean(0), dropout.weight
    std = (RATE / (1 - RATE)) ** 0.5 * weight.abs()  # of a Bernoulli over 1 - rate
    assert ((mean - weight).abs() < 5 * std / 20000**0.5).all()
    torch.testing.assert_close(draws.std(0), std, rtol=0.03, atol=0)
    kept = (draws[:, 0] != 0).double()
    covariance = torch.cov(kept.T) - RATE * (1 - RATE) * torch.eye(20)
    assert covariance.abs().max() < 5 * RATE * (1 - RATE) / 20000**0.5 * 2  # columns drop independently


def test_the_mean_is_the_weight_and_costs_nothing() -> None:
    dropout = factor()
    torch.testing.assert_close(dropout.mean(), dropout.weight, rtol=0, atol=0)
    assert dropout.kl_divergence(generator_of(0)) == 0
    W = torch.ones(3, 20, dtype=torch.float64)
    dropout.set_mean(W)
    torch.testing.assert_close(dropout.mean(), W, rtol=0, atol=0)


def test_without_dropout_it_is_a_point() -> None:
    dropout = factor(0.0)
    draws = dropout.sample_from(standard_normal(3, generator_of(1)))
    torch.testing.assert_close(draws, dropout.weight.expand(3, -1, -1), rtol=0, atol=0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_rate_that_makes_no_sense_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="dropout rate"):
        factor(rate)


def test_draws_nest() -> None:
    many, few = (posterior().sample(n, generator_of(5)) for n in (6, 2))
    for name, factors in few.factors.items():
        assert torch.equal(many.factors[name].A[:2], factors.A)
        assert torch.equal(many.factors[name].B[:2], factors.B)


def test_a_alone_drops_out() -> None:
    trained = posterior()
    for name in trained.modules_shape:
        trained.B[name.replace(".", "/")].set_mean(torch.ones(trained.modules_shape[name][0], 2))
    for factors in trained.sample(4, generator_of(0)).factors.values():
        assert (factors.A == 0).any()
        assert torch.equal(factors.B, torch.ones_like(factors.B))


def test_it_starts_where_lora_does() -> None:
    base = tiny_base()
    lora = toy_posterior(base, method="lora", seed=3).mean()
    for name, factors in posterior(seed=3).mean().factors.items():
        assert torch.equal(factors.A, lora.factors[name].A)


def test_a_learnable_set_is_learnt(tmp_path: Path) -> None:
    base = tiny_base()
    validation = labelled(base, toy_data(6, seed=1))
    before = evaluate(base.model, validation, None).metrics.nll
    learnt = posterior(0.1)
    config = toy_config(tmp_path, epochs=6, lora_learning_rate=2e-2)
    fit(base, learnt, labelled(base, toy_data(24)), validation, config)
    bank = SampleBank.draw(learnt, "toy", 4, config.seed)
    result = evaluate(base.model, validation, bank.draws)
    assert result.metrics.nll < 0.5 * before
    assert result.mean_mutual_information > 0
