"""The product of the parts of a linear head, against the parts multiplied by hand, and its powers."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from blora.config import BaseModelRef, CompanionConfig, HeadConfig, PosteriorConfig, SamplingConfig
from blora.errors import DataError
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import DecisionHead, Features
from blora.posterior.draws import NO_LORA
from blora.posterior.posterior import Posterior
from blora.training.config import TOLERANCE_NATS
from blora.training.head.crossfit import N_FOLDS, folds_of
from blora.training.head.fit import OFF, Regression, fit_head
from blora.training.head.pool import MOST_POWER, Pooled, pool
from blora.training.head.train import fit_parts
from blora.training.rows.packed import LabelledRow, labels_of
from tests.heads import texts_with
from tests.training.head.test_fit import CONFIG, linear_rows, linear_task

N_BASE, N_COMPANION = 6, 4
COMPANION = CompanionConfig(
    model=BaseModelRef(id="owner/encoder", revision=None, fingerprint="", reading=""), depths=(1,), n_states=N_COMPANION
)
BOTH = HeadConfig(
    depths=(1,), n_states=N_BASE + N_COMPANION, n_directions=8, n_grams=4, mirrored=True, companion=COMPANION
)
Task = tuple[Features, list[LabelledRow]]


def told_by(*places: int, n_rows: int = 200, seed: int = 0) -> Task:
    """Rows whose label is the sign of the sum of some states, with noise; no count tells anything."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n_rows, N_BASE + N_COMPANION, generator=generator)
    noise = torch.randn(n_rows, generator=generator)
    labels = (states[:, list(places)].sum(1) + 0.5 * noise > 0).long().tolist()
    grams = texts_with(torch.randint(0, 3, (n_rows, 4), generator=generator))
    return Features(states, torch.zeros(n_rows, 0), states[:, :N_BASE], grams=grams), linear_rows(labels, 2)


def pooled(config: HeadConfig, train: Task, validation: Task) -> Pooled:
    return pool(config, *train, *validation, NO_LORA, seed=0)


def log_probs(head: DecisionHead, task: Task) -> torch.Tensor:
    """Log-probabilities of the posterior mean."""
    features, rows = task
    return head_log_probs(head.mean(NO_LORA), [row.row for row in rows], features)[0]


def test_the_head_is_the_product_of_its_parts_to_their_powers() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    found = pooled(BOTH, train, validation)
    assert list(found.powers) == list(found.factors) == ["counts", "states", "companion", "joint"]
    by_hand = sum(power * log_probs(found.factors[name].head, validation) for name, power in found.powers.items())
    assert isinstance(by_hand, torch.Tensor)
    whole = log_probs(found.whole.head, validation)
    torch.testing.assert_close(whole, by_hand.log_softmax(-1), rtol=1e-4, atol=1e-4)
    alone = [found.factors[name].trial.metrics.nll for name in ("counts", "states", "companion")]
    assert found.whole.trial.metrics.nll < min(alone) - 0.05
    assert found.whole.trial.metrics.nll < found.factors["joint"].trial.metrics.nll + 1e-4


def test_a_factor_is_the_fit_of_its_part_alone_and_reads_nothing_else() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    found = pooled(BOTH, train, validation)
    own = {
        "states": (replace(BOTH, n_states=N_BASE, companion=None), slice(N_BASE)),
        "companion": (replace(BOTH, n_states=N_COMPANION, n_grams=0, companion=None), slice(N_BASE, None)),
    }
    for name, (config, at) in own.items():
        read = [replace(features, states=features.states[:, at]) for features, _ in (train, validation)]
        alone = fit_head(Regression.of(config, read[0], train[1]), read[1], validation[1], NO_LORA, "states")
        assert found.factors[name].precisions == alone.precisions
        expected = log_probs(alone.head, (read[1], validation[1]))
        torch.testing.assert_close(log_probs(found.factors[name].head, validation), expected, rtol=1e-4, atol=1e-5)
    assert found.factors["counts"].head.weight.abs().max() == 0
    assert found.factors["companion"].head.count_weight.abs().max() == 0


def test_the_joint_fit_is_the_minimum_at_the_precision_of_each_part() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    found = pooled(BOTH, train, validation)
    head = found.factors["joint"].head
    weight, count_weight, bias = (
        part.double().requires_grad_() for part in (head.weight, head.count_weight, head.bias)
    )
    z = head.project(train[0].states).double()
    counts = torch.zeros(len(z), 4, dtype=torch.double)
    columns, values, begins = head.weighted(train[0].grams)
    counts[torch.arange(len(z)).repeat_interleave(begins.diff()), columns] = values.double()
    logits = z @ weight + counts @ count_weight + bias
    loss = torch.nn.functional.cross_entropy(logits, labels_of(train[1]), reduction="sum")
    first = len(found.factors["states"].head.directions) - N_COMPANION
    for name, own in (("states", weight[:first]), ("companion", weight[first:])):
        size = (first, N_BASE) if name == "states" else (len(weight) - first, N_COMPANION)
        loss = loss + found.factors[name].precisions[0] * size[0] / size[1] * own.square().sum() / 2
    loss = loss + found.factors["counts"].precisions[1] * count_weight.square().sum() / 2
    loss.backward()  # type: ignore[no-untyped-call]
    for part in (weight, count_weight, bias):
        assert part.grad is not None
        assert part.grad.abs().max() < 0.02 * len(z) ** 0.5


def test_no_other_powers_do_better_on_the_validation_rows() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    found = pooled(BOTH, train, validation)
    of_factors = torch.stack([log_probs(fitted.head, validation) for fitted in found.factors.values()])
    labels = labels_of(validation[1])

    def nll(powers: torch.Tensor) -> float:
        logits = torch.einsum("p,pnc->nc", powers, of_factors)
        prior = float((powers - 1 / 4).square().sum()) / 2  # which weighs as much as one row
        return float(torch.nn.functional.cross_entropy(logits, labels)) + prior / len(labels)

    best = torch.tensor([*found.powers.values()])
    generator = torch.Generator().manual_seed(0)
    around = [(best + 0.2 * torch.randn(4, generator=generator)).clamp(0, MOST_POWER) for _ in range(200)]
    assert nll(best) <= min(map(nll, around)) + 1e-6
    assert all(0 <= power <= MOST_POWER for power in found.powers.values())


@pytest.mark.parametrize(("place", "part", "other"), [(0, "states", "companion"), (7, "companion", "states")])
def test_a_part_that_tells_nothing_has_little_weight(place: int, part: str, other: str) -> None:
    found = pooled(BOTH, told_by(place), told_by(place, seed=1))
    assert found.powers[part] + found.powers["joint"] > 0.7
    head, n_base = found.whole.head, 6
    spread = {"states": head.weight[:n_base].norm(), "companion": head.weight[n_base:].norm()}
    assert spread[other] < 0.3 * spread[part]


def test_deviations_are_those_of_the_laplace_approximation_at_the_product() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    found = pooled(BOTH, train, validation)
    head = found.whole.head
    z = head.project(train[0].states).double()
    probs = head_log_probs(head.mean(NO_LORA), [row.row for row in train[1]], train[0])[0].double().exp()
    fisher = probs.mean(0).diag() - probs.T @ probs / len(probs)
    values = torch.linalg.eigvalsh(fisher)
    prior = []
    for name, at in (("states", slice(N_BASE)), ("companion", slice(N_BASE, None))):
        n_directions = int((head.directions[:, at].abs().sum(1) > 0).sum())
        per_state = found.factors[name].precisions[0] / (found.powers[name] + found.powers["joint"]) ** 2
        prior.append(torch.full((n_directions,), per_state * n_directions / head.center[at].numel()))
    variance = 1 / (torch.outer(z.square().sum(0), values.clamp_min(0)) + torch.cat(prior)[:, None])
    torch.testing.assert_close(head.deviation.double(), variance.sqrt(), rtol=1e-3, atol=1e-6)


def test_without_a_companion_states_and_counts_are_the_parts() -> None:
    train, validation = linear_task(80, 1), linear_task(80, 2)
    found = pooled(CONFIG, train, validation)
    assert list(found.powers) == ["counts", "states", "joint"]
    assert found.whole.head.config == replace(CONFIG, n_directions=len(found.whole.head.weight))
    alone = Regression.of(CONFIG, *train).blank
    torch.testing.assert_close(found.whole.head.directions, alone.directions)
    of_states, of_counts, _ = found.whole.precisions
    joint = found.powers["joint"]
    assert of_states == pytest.approx(found.factors["states"].precisions[0] / (found.powers["states"] + joint) ** 2)
    assert of_counts == pytest.approx(found.factors["counts"].precisions[1] / (found.powers["counts"] + joint) ** 2)


def test_fitted_again_to_the_same_rows_it_is_the_same() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    found = pooled(BOTH, train, validation)
    again = found.again(BOTH, *train)
    asked = [row.row for row in validation[1]]
    one, other = (head_log_probs(head.mean(NO_LORA), asked, validation[0]) for head in (found.whole.head, again))
    torch.testing.assert_close(one, other, rtol=0, atol=0.02)  # the search starts elsewhere
    half = range(0, len(train[1]), 2)
    fewer = found.again(BOTH, train[0].at(half), [train[1][i] for i in half])
    assert (fewer.weight - again.weight).norm() > 0.05 * again.weight.norm()


def test_few_validation_rows_are_helped_by_folds_that_the_product_of_the_others_answers() -> None:
    train, validation = linear_task(80, 1), linear_task(20, 2)
    found = pooled(CONFIG, train, validation)
    expected = folds_of(partial(found.again, CONFIG), *train, 0)
    assert len(found.folds) == len(expected) == N_FOLDS
    for fold, other in zip(found.folds, expected, strict=True):
        assert [id(row) for row in fold.rows] == [id(row) for row in other.rows]
        for name, tensor in other.head.tensors().items():
            torch.testing.assert_close(fold.head.tensors()[name], tensor)
    assert pooled(CONFIG, train, linear_task(100, 2)).folds == []  # so many need no help
    assert pool(CONFIG, *train, *validation, NO_LORA, seed=None).folds == []


def test_a_regression_on_states_alone_has_weights_of_zero_for_every_n_gram() -> None:
    regression = Regression.of(CONFIG, *linear_task(80, 1))
    of_states, of_both = (regression.solve(1.0, counts, OFF, None) for counts in (OFF, 1.0))
    assert of_states.count_weight.shape == of_both.count_weight.shape == (regression.counts.shape[1], 3)
    assert not of_states.count_weight.any()
    assert of_both.count_weight.any()
    after = regression.solve(1.0, OFF, OFF, of_both)  # from a start with weights of n-grams
    assert not after.count_weight.any()
    torch.testing.assert_close(after.weight, of_states.weight, rtol=0, atol=0.01)


@pytest.mark.parametrize("noise", [0.0, 1e-8], ids=["all the same", "the same up to rounding"])
def test_a_companion_that_cannot_tell_the_texts_apart_is_not_asked(noise: float) -> None:
    """It reads the beginning of a text, which may be the same in all of them."""
    train, validation = told_by(0, 1), told_by(0, 1, seed=1)
    for features, _ in (train, validation):
        features.states[:, N_BASE:] = 0.05 + noise * features.states[:, N_BASE:]
    head = pooled(BOTH, train, validation).whole.head
    elsewhere = replace(validation[0], states=validation[0].states.clone())
    elsewhere.states[:, N_BASE:] = -0.05
    assert torch.equal(log_probs(head, (elsewhere, validation[1])), log_probs(head, validation))
    assert head.deviation.isfinite().all()


def test_a_base_model_that_cannot_tell_the_texts_apart_is_told() -> None:
    features, rows = told_by(0, 1)
    features.states[:, :N_BASE] = 0.05
    with pytest.raises(DataError, match="cannot tell apart, expected at least two different texts"):
        pooled(BOTH, (features, rows), told_by(0, 1, seed=1))


def test_training_shows_each_part_and_draws_from_the_product() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    lora = Posterior({}, PosteriorConfig(method="lora"), seed=0)
    trained = fit_parts(BOTH, *train, *validation, SamplingConfig(n_samples=8), lora)
    assert [part.name for part in trained.parts] == [
        "regression on n-grams",
        "regression on frozen states",
        "regression on the companion's states",
        "regression on all of them together",
        "head, posterior mean",
        "head, 8 draws",
    ]
    assert trained.config.n_states == N_BASE + N_COMPANION
    assert trained.familiarity.config.n_states == N_BASE
    drawn = trained.posterior.sample(8, torch.Generator().manual_seed(0)).weights
    assert np.ptp(drawn.numpy(), 0).max() > 0


def many_labels(n_rows: int, seed: int) -> Task:
    """Rows of 60 labels, each a direction of its own, which so few rows leave wide open."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_rows) % 60
    states = torch.eye(60)[labels] + 0.2 * torch.randn(n_rows, 60, generator=generator)
    grams = texts_with(torch.ones(n_rows, 1))
    return Features(states, torch.zeros(n_rows, 0), states, grams=grams), linear_rows(labels.tolist(), 60)


def test_draws_of_many_labels_are_narrow_enough_to_cost_little() -> None:
    lora = Posterior({}, PosteriorConfig(method="lora"), seed=0)
    config = HeadConfig(depths=(1,), n_states=60, n_directions=60, n_grams=4, mirrored=True)
    trained = fit_parts(config, *many_labels(300, 0), *many_labels(120, 1), SamplingConfig(n_samples=32), lora)
    *_, mean, draws = trained.parts
    assert draws.metrics.nll <= mean.metrics.nll + 2 * TOLERANCE_NATS
    assert trained.trial.scale < 0.1
