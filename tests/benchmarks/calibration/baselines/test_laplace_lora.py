import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.calibration.baselines.laplace_lora import (  # with the library, whose own import warns
    DiagLaplace,
    LoraClassifier,
    LoraLaplace,
    RowwiseGGN,
    choose_precision,
    fit_laplace,
)
from blora.errors import ConfigError, NumericalError
from blora.inference.batches import collate
from blora.inference.scoring import score_rows
from blora.posterior.draws import Draws, Factors
from blora.posterior.noise import generator_of
from blora.training.evaluate import predict_all
from blora.training.rows.packed import LabelledRow, collate_labelled
from tests.benchmarks.calibration.baselines.conftest import Trained
from tests.scenarios import injected, random_draws, random_rows
from tests.training.toys import evaluate


def rows(n_rows: int = 6) -> list[LabelledRow]:
    """Rows with two to four choices."""
    return [LabelledRow(row, n % 2) for n, row in enumerate(random_rows(n_rows))]


def curvature_by_hand(model: Any, lora: Draws, data: list[LabelledRow]) -> Tensor:
    """The diagonal of the Fisher information, sum_n sum_c p_c (d log p_c)^2, row by row and choice by choice."""
    weights = [W.clone().requires_grad_() for pair in lora.factors.values() for W in (pair.A, pair.B)]
    names = list(lora.factors)
    draws = Draws(
        {name: Factors(A, B) for name, A, B in zip(names, weights[::2], weights[1::2], strict=True)}, lora.scaling, 1
    )
    total = torch.zeros(sum(W.numel() for W in weights))
    for row in data:
        log_probs = score_rows(model, collate([row.row]), draws)[0]
        for log_prob in log_probs:
            gradients = torch.autograd.grad(log_prob, weights, retain_graph=True)
            total += log_prob.exp().detach() * torch.cat([g.flatten() for g in gradients]).square()
    return total


class Softmax(nn.Module):
    """A linear classifier in the clothes of `LoraClassifier`."""

    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList([W])

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.logits(batch["batch"], [self.weights[0][None]])

    def logits(self, batch: Tensor, weights: list[Tensor]) -> Tensor:
        return torch.einsum("bcd,bd->bc", weights[0].expand(len(batch), -1, -1), batch)


def test_the_curvature_of_a_linear_classifier_is_that_of_the_textbook() -> None:
    generator = generator_of(0)
    x, W = torch.randn(12, 4, generator=generator), torch.randn(3, 4, generator=generator)
    y = torch.randint(3, (12,), generator=generator)
    loader = DataLoader(
        list(zip(x, y, strict=True)),
        5,
        collate_fn=lambda rows: {
            "batch": torch.stack([r[0] for r in rows]),
            "labels": torch.stack([r[1] for r in rows]),
        },
    )
    laplace = DiagLaplace(Softmax(W), "classification", backend=RowwiseGGN, prior_precision=2.0)
    laplace.fit(loader)
    p = (x @ W.mT).softmax(-1)
    expected = torch.einsum("nc,nd->cd", p * (1 - p), x.square())
    torch.testing.assert_close(laplace.H, expected.flatten())
    torch.testing.assert_close(laplace.posterior_variance, 1 / (expected.flatten() + 2))
    nll = torch.nn.functional.cross_entropy(x @ W.mT, y, reduction="sum")
    torch.testing.assert_close(laplace.log_likelihood, -nll)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_curvature_of_a_lora_is_its_fisher_information(batch_size: int) -> None:
    model, modules = injected()
    lora = random_draws(modules, 1, scaling=0.5)
    data = rows()
    fitted = fit_laplace(model, lora, data, batch_size=batch_size)
    expected = curvature_by_hand(model, lora, data)
    assert (-1e-6 * expected.max() <= fitted.laplace.H).all()
    torch.testing.assert_close(fitted.laplace.H, expected, rtol=1e-3, atol=1e-5 * expected.max().item())


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of functorch, which the library's own go through
def test_the_jacobians_are_those_of_the_library() -> None:
    model, modules = injected()
    classifier = LoraClassifier(model, random_draws(modules, 1, scaling=0.5))
    batch = collate_labelled(rows(3))
    ours, logits = RowwiseGGN(classifier, "classification").jacobians(batch)
    theirs, expected = DiagLaplace(classifier, "classification").backend.jacobians(batch)
    assert ours.shape == (3, 4, sum(W.numel() for W in classifier.parameters()))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_a_lora_above_the_first_layer_is_fitted_on_the_trunks_states() -> None:
    model, modules = injected()
    upper = {name: shape for name, shape in modules.items() if ".1." in name}
    lora = random_draws(upper, 1, scaling=0.5)
    data = rows()
    expected = curvature_by_hand(model, lora, data)
    fitted = fit_laplace(model, lora, data)
    torch.testing.assert_close(fitted.laplace.H, expected, rtol=1e-3, atol=1e-5 * expected.max().item())


def test_the_global_generator_is_left_alone() -> None:
    model, modules = injected()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fitted = fit_laplace(model, random_draws(modules, 1), rows())
    fitted.sample(1.0, 2, generator_of(0))
    assert torch.equal(torch.get_rng_state(), before)


# Draws


@pytest.fixture(scope="module")
def fitted() -> LoraLaplace:
    model, modules = injected()
    return fit_laplace(model, random_draws(modules, 1, scaling=0.5), rows())


def flat(draws: Draws) -> Tensor:
    parts = [W.flatten(1) for pair in draws.factors.values() for W in (pair.A, pair.B)]
    return torch.cat(parts, 1)


def test_the_moments_of_draws(fitted: LoraLaplace) -> None:
    n_samples = 2000
    draws = fitted.sample(4.0, n_samples, generator_of(0))
    assert draws.n_samples == n_samples
    assert draws.scaling == 0.5
    z = (flat(draws) - fitted.laplace.mean) * (fitted.laplace.H + 4.0).sqrt()
    assert z.mean(0).abs().max() < 5.5 / n_samples**0.5
    torch.testing.assert_close(z.square().mean(0), torch.ones(z.shape[1]), rtol=0.2, atol=0)


def test_draws_are_shaped_as_the_lora_is(fitted: LoraLaplace) -> None:
    model, modules = injected()
    lora = random_draws(modules, 1, scaling=0.5)
    draws = fitted.sample(1e12, 3, generator_of(0))
    for name, (d_out, d_in) in modules.items():
        assert draws.factors[name].A.shape == (3, 3, d_in)
        assert draws.factors[name].B.shape == (3, d_out, 3)
        torch.testing.assert_close(draws.factors[name].A[1:2], lora.factors[name].A, rtol=0, atol=1e-4)
        torch.testing.assert_close(draws.factors[name].B[2:], lora.factors[name].B, rtol=0, atol=1e-4)
    data = rows()
    sharp = predict_all(model, data, draws)
    torch.testing.assert_close(sharp, predict_all(model, data, lora).expand(3, -1, -1), rtol=0, atol=1e-3)


def test_draws_nest(fitted: LoraLaplace) -> None:
    many, few = (flat(fitted.sample(1.0, n, generator_of(5))) for n in (6, 2))
    assert torch.equal(many[:2], few)


@pytest.mark.parametrize("precision", [0.0, -1.0, math.inf, math.nan])
def test_a_prior_that_is_none_is_refused(fitted: LoraLaplace, precision: float) -> None:
    with pytest.raises(ConfigError, match="prior precision"):
        fitted.sample(precision, 2, generator_of(0))


def test_what_cannot_be_fitted_is_refused() -> None:
    model, modules = injected()
    with pytest.raises(ConfigError, match="2 draws and 6 rows"):
        fit_laplace(model, random_draws(modules, 2), rows())
    with pytest.raises(ConfigError, match="1 draws and 0 rows"):
        fit_laplace(model, random_draws(modules, 1), [])
    broken = random_draws(modules, 1, scaling=math.nan)
    with pytest.raises(NumericalError, match="not finite"):
        fit_laplace(model, broken, rows())


# The prior precision


def test_the_precision_of_the_lowest_loss_is_chosen() -> None:
    assert choose_precision(lambda precision: (math.log10(precision) - 2.1) ** 2, [1.0, 10.0, 100.0, 1e4]) == 100.0
    losses = {1.0: math.nan, 2.0: 3.0, 3.0: math.inf}
    assert choose_precision(losses.__getitem__, tuple(losses)) == 2.0


def test_without_a_choice_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no prior precisions"):
        choose_precision(lambda precision: 1.0, [])
    with pytest.raises(NumericalError, match="no finite loss"):
        choose_precision(lambda precision: math.nan, [1.0])


def test_a_trained_lora_gets_a_posterior(trained: Trained) -> None:
    model = trained.base.model
    fitted = fit_laplace(model, trained.lora, trained.train)

    def loss(precision: float) -> float:
        return evaluate(model, trained.validation, fitted.sample(precision, 4, generator_of(0))).metrics.nll

    precisions = [10.0**k for k in range(0, 9, 2)]
    chosen = choose_precision(loss, precisions)
    lora_nll = evaluate(model, trained.validation, trained.lora).metrics.nll
    assert loss(chosen) == min(loss(precision) for precision in precisions)
    assert loss(1e8) == pytest.approx(lora_nll, rel=0.02)
    assert loss(chosen) <= 1.02 * lora_nll
    assert loss(1.0) > loss(chosen)
