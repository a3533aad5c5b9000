from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blora.inference.batches import collate
from blora.posterior.draws import Draws, Factors
from blora.posterior.inject import inject
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.lora.objective import Elbo
from blora.training.rows.packed import LabelledRow, collate_labelled
from tests.scenarios import adapted_modules, choices_alone, merged, random_rows, tiny_base, tiny_model
from tests.training.toys import labelled, toy_data, toy_posterior

N_TRAIN = 50


def rows(n_rows: int = 8, seed: int = 0) -> list[LabelledRow]:
    return [LabelledRow(row, index % row.n_choices) for index, row in enumerate(random_rows(n_rows, seed=seed))]


def stirred(posterior: Posterior, seed: int = 0) -> Posterior:
    """Return the posterior with its parameters moved from their start, so that B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return posterior


def elbo(posterior: Posterior | None = None, **settings: Any) -> Elbo:
    base = tiny_base()
    posterior = posterior or stirred(toy_posterior(base))
    inject(base.model, posterior.modules_shape)
    return Elbo(base.model, posterior, **({"n_train": N_TRAIN, "kl_weight": 0.1, "n_draws": 4, "seed": 0} | settings))


def loss_of(module: Elbo, labelled_rows: list[LabelledRow], kl_share: float = 1.0) -> Any:
    batch = collate_labelled(labelled_rows)
    return module(batch["batch"], batch["labels"], kl_share)


def cross_entropy_alone(model: nn.Module, labelled_rows: list[LabelledRow]) -> Tensor:
    """Mean cross-entropy over the choices, with one forward pass per choice."""
    return -torch.stack([choices_alone(model, row.row)[row.label] for row in labelled_rows]).mean()


def first_draws(posterior: Posterior, n_samples: int, *seeds: int) -> Draws:
    with torch.no_grad():
        return posterior.sample(n_samples, generator_of(*seeds))


def test_a_point_posterior_gives_the_cross_entropy_over_choices() -> None:
    posterior = stirred(toy_posterior(tiny_base(), method="lora"))
    loss = loss_of(elbo(posterior), rows())
    with torch.no_grad():
        model = merged(tiny_model(), posterior.mean(), 0)
    expected = cross_entropy_alone(model, rows())
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert loss.kl.item() == 0
    assert loss.nll.item() == loss.total.item()


def test_an_untrained_point_posterior_gives_the_base_models_loss() -> None:
    loss = loss_of(elbo(toy_posterior(tiny_base(), method="lora")), rows())
    expected = cross_entropy_alone(tiny_model(), rows())
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize(("n_rows", "n_draws", "used"), [(8, 4, 4), (6, 4, 2), (5, 4, 1), (8, 1, 1), (4, 16, 4)])
def test_each_draw_takes_its_own_run_of_rows(n_rows: int, n_draws: int, used: int) -> None:
    module = elbo(n_draws=n_draws)
    loss = loss_of(module, rows(n_rows))
    draws = first_draws(module.posterior, used, module.seed, 0, 0)
    share = n_rows // used
    expected = [
        cross_entropy_alone(merged(tiny_model(), draws, s), rows(n_rows)[s * share : (s + 1) * share])
        for s in range(used)
    ]
    torch.testing.assert_close(loss.nll, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("kl_weight", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_kl_enters_by_weight_and_share_and_is_shared_among_the_examples(kl_weight: float, share: float) -> None:
    module = elbo(kl_weight=kl_weight)
    loss = loss_of(module, rows(), share)
    kl = module.posterior.kl_divergence(torch.Generator()).item() / N_TRAIN
    assert loss.kl.item() == pytest.approx(kl)
    assert loss.total.item() == pytest.approx(loss.nll.item() + kl_weight * share * kl)


def test_the_parts_for_the_log_hold_no_graph() -> None:
    loss = loss_of(elbo(), rows())
    assert loss.total.requires_grad
    assert not loss.nll.requires_grad
    assert not loss.kl.requires_grad


@pytest.mark.parametrize("settings", [{"family": "diagonal"}, {"family": "matrix_normal"}, {"family": "flow"}])
def test_gradients_reach_the_whole_posterior_and_nothing_else(settings: dict[str, Any]) -> None:
    module = elbo(stirred(toy_posterior(tiny_base(), **settings)))
    loss_of(module, rows()).total.backward()
    for name, parameter in module.posterior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert any(parameter.grad.abs().max() > 0 for parameter in module.posterior.parameters())
    assert all(p.grad is None and not p.requires_grad for p in module.model.parameters())


def test_the_likelihood_alone_moves_every_factor() -> None:
    module = elbo(kl_weight=0.0)
    loss_of(module, rows()).total.backward()
    for name, parameter in module.posterior.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_only_the_posterior_learns() -> None:
    module = elbo()
    learnt = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert learnt == {f"posterior.{name}" for name, _ in module.posterior.named_parameters()}


def test_noise_is_numbered_by_forward_pass() -> None:
    module = elbo()
    first = [loss_of(module, rows()).nll.item() for _ in range(3)]
    assert module.n_forwards == 3
    assert len(set(first)) == 3
    module.n_forwards = 1
    assert loss_of(module, rows()).nll.item() == first[1]
    fresh = elbo()
    assert [loss_of(fresh, rows()).nll.item() for _ in range(3)] == first


def test_noise_does_not_touch_the_global_generator() -> None:
    module = elbo()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loss_of(module, rows())
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_and_processes_have_noise_of_their_own() -> None:
    other_run, other_process = elbo(seed=1), elbo()
    other_process.rank = 1
    losses = {loss_of(module, rows()).nll.item() for module in (elbo(), other_run, other_process, elbo(seed=2**32))}
    assert len(losses) == 4


def test_a_huge_seed_still_makes_noise() -> None:
    assert loss_of(elbo(seed=2**40 + 1), rows()).total.isfinite()


def test_more_draws_lower_the_spread_of_the_loss_at_no_more_passes() -> None:
    base = tiny_base()
    eight = labelled(base, toy_data(1)) * 8
    posterior = stirred(toy_posterior(base))

    def spread(n_draws: int) -> float:
        module = elbo(posterior, n_draws=n_draws)
        with torch.no_grad():
            return torch.stack([loss_of(module, eight).nll for _ in range(40)]).std().item()

    assert spread(8) < 0.7 * spread(1)


def test_the_gradient_is_that_of_the_loss_written_out() -> None:
    module = elbo(kl_weight=0.5, n_draws=1)
    loss_of(module, rows()).total.backward()
    got = {name: p.grad.clone() for name, p in module.posterior.named_parameters()}
    module.posterior.zero_grad()
    generator = generator_of(0, 0, 0)  # seed, rank, forward pass
    draws = module.posterior.sample(1, generator)
    leaves = {
        name: Factors(f.A.detach().requires_grad_(), f.B.detach().requires_grad_()) for name, f in draws.factors.items()
    }
    nll = differentiable_nll(leaves, draws.scaling)
    nll.backward()
    outputs = [t for f in draws.factors.values() for t in (f.A, f.B)]
    grads = [t.grad for f in leaves.values() for t in (f.A, f.B)]
    torch.autograd.backward(outputs, grads, retain_graph=True)
    (0.5 * module.posterior.kl_divergence(generator) / N_TRAIN).backward()
    for name, parameter in module.posterior.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-5)


def differentiable_nll(factors: dict[str, Factors], scaling: float) -> Tensor:
    """Mean cross-entropy over choices by functional calls of the uninjected model, one pass per choice."""
    model = tiny_model()
    weights = {
        f"{name}.weight": model.get_submodule(name).weight + scaling * f.B[0] @ f.A[0] for name, f in factors.items()
    }
    terms = []
    for row in rows():
        totals = []
        for tokens in row.row.continuations:
            ids = torch.tensor([[*row.row.prompt, *tokens]])
            logits = torch.func.functional_call(model, weights, kwargs={"input_ids": ids}).logits[0]
            at = torch.arange(len(row.row.prompt) - 1, ids.shape[1] - 1)
            totals.append(logits.log_softmax(-1)[at, torch.tensor(tokens)].sum())
        terms.append(-torch.stack(totals).log_softmax(-1)[row.label])
    return torch.stack(terms).mean()


def test_the_default_modules_are_adapted() -> None:
    assert set(elbo().posterior.modules_shape) == set(adapted_modules(tiny_model()))
    assert collate([row.row for row in rows()]).input_ids.shape[0] == 8
