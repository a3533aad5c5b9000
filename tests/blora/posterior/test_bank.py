import dataclasses

import pytest
import torch

from blora.config import PosteriorConfig
from blora.errors import ConfigError, NumericalError
from blora.posterior.bank import SampleBank
from blora.posterior.draws import Draws
from blora.posterior.families import FAMILIES
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior

MODULES = {"layers.0.q_proj": (6, 5), "layers.1.q_proj": (4, 5)}


def make(family: str = "diagonal") -> Posterior:
    config = PosteriorConfig(rank=2, inducing_rows=3, inducing_cols=3, family=family)  # type: ignore[arg-type]
    return Posterior(MODULES, config, seed=0)


def close(first: Draws, second: Draws, tolerance: float) -> bool:
    return all(
        torch.allclose(getattr(first.factors[name], side), getattr(second.factors[name], side), rtol=0, atol=tolerance)
        for name in MODULES
        for side in "AB"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_first_four_of_a_bank_of_sixteen_are_a_bank_of_four(family: str) -> None:
    posterior = make(family)
    sixteen, four = (SampleBank.draw(posterior, "digest", n, seed=3) for n in (16, 4))
    assert close(sixteen.first(4), four.draws, 1e-6)


def test_equal_arguments_give_equal_bits_and_another_seed_does_not() -> None:
    posterior = make()
    bank = SampleBank.draw(posterior, "digest", 4, seed=3)
    assert close(bank.draws, SampleBank.draw(posterior, "digest", 4, seed=3).draws, 0)
    assert not close(bank.draws, SampleBank.draw(posterior, "digest", 4, seed=4).draws, 1e-3)


def test_a_bank_is_what_the_posterior_draws_from_the_same_seed() -> None:
    posterior = make()
    expected = posterior.sample(4, generator_of(3))
    assert close(SampleBank.draw(posterior, "digest", 4, seed=3).draws, expected, 1e-6)


def test_a_bank_says_where_it_came_from() -> None:
    bank = SampleBank.draw(make(), "sha256:abc", 4, seed=3)
    assert (bank.digest, bank.seed, bank.n_samples) == ("sha256:abc", 3, 4)


def test_a_bank_is_immutable_and_holds_no_graph() -> None:
    bank = SampleBank.draw(make(), "digest", 2, seed=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        bank.seed = 1  # type: ignore[misc]
    assert not any(f.A.requires_grad or f.B.requires_grad for f in bank.draws.factors.values())


@pytest.mark.parametrize("method", ["bayesian", "lora"])
def test_a_bank_does_not_follow_the_posterior_it_came_from(method: str) -> None:
    config = PosteriorConfig(rank=2, inducing_rows=3, inducing_cols=3, method=method)  # type: ignore[arg-type]
    posterior = Posterior(MODULES, config, seed=0)
    bank = SampleBank.draw(posterior, "digest", 2, seed=0)
    before = {name: f.A.clone() for name, f in bank.draws.factors.items()}
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter += 1
    assert all(torch.equal(f.A, before[name]) for name, f in bank.draws.factors.items())


@pytest.mark.parametrize("n_samples", [0, 5])
def test_more_draws_than_the_bank_holds_are_refused(n_samples: int) -> None:
    bank = SampleBank.draw(make(), "digest", 4, seed=0)
    with pytest.raises(ConfigError, match=f"got n_samples = {n_samples}, expected 1 to 4, the size of the bank"):
        bank.first(n_samples)


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(ConfigError, match="got n_samples = 0, expected at least 1"):
        SampleBank.draw(make(), "digest", 0, seed=0)


def test_a_draw_that_is_not_finite_is_refused_and_its_module_named() -> None:
    posterior = make()
    with torch.no_grad():
        posterior.B["layers/1/q_proj"].family.inducing_mean[0, 0] = torch.inf
    with pytest.raises(NumericalError, match=r"a draw of layers\.1\.q_proj that is not finite"):
        SampleBank.draw(posterior, "digest", 2, seed=0)
