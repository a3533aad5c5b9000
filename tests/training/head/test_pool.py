"""The product of the parts of a linear head, against the parts multiplied by hand, and its powers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blora.config import BaseModelRef, CompanionConfig, HeadConfig, PosteriorConfig, SamplingConfig
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import Features
from blora.posterior.draws import NO_LORA
from blora.posterior.posterior import Posterior
from blora.training.head.fit import Regression
from blora.training.head.pool import MOST_POWER, Pooled, pool
from blora.training.head.train import fit_parts
from blora.training.rows.packed import LabelledRow, labels_of
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
    counts = torch.randint(-1, 2, (n_rows, 4), generator=generator).float()
    return Features(states, counts, states[:, :N_BASE]), linear_rows(labels, 2)


def pooled(config: HeadConfig, train: Task, validation: Task) -> Pooled:
    return pool(config, *train, *validation, NO_LORA, seed=0)


def log_probs(found: Pooled, name: str, task: Task) -> torch.Tensor:
    """Log-probabilities of a part, which reads its own states and counts."""
    features, rows = task
    states = features.states[:, N_BASE:] if name == "companion" else features.states[:, :N_BASE]
    counts = features.counts[:, :0] if name == "companion" else features.counts
    own = replace(features, states=states, counts=counts)
    return head_log_probs(found.parts[name].head.mean(NO_LORA), [row.row for row in rows], own)[0]


def test_the_head_is_the_product_of_its_parts_to_their_powers() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    found = pooled(BOTH, train, validation)
    assert list(found.powers) == ["counts", "states", "companion"]
    by_hand = sum(power * log_probs(found, name, validation) for name, power in found.powers.items())
    assert isinstance(by_hand, torch.Tensor)
    whole = head_log_probs(found.whole.head.mean(NO_LORA), [row.row for row in validation[1]], validation[0])[0]
    torch.testing.assert_close(whole, by_hand.log_softmax(-1), rtol=1e-4, atol=1e-4)
    parts = [found.parts[name].trial.metrics.nll for name in found.parts]
    assert found.whole.trial.metrics.nll < min(parts) - 0.05


def test_no_other_powers_do_better_on_the_validation_rows() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    found = pooled(BOTH, train, validation)
    of_parts = torch.stack([log_probs(found, name, validation) for name in found.parts])
    labels = labels_of(validation[1])

    def nll(powers: torch.Tensor) -> float:
        logits = torch.einsum("p,pnc->nc", powers, of_parts)
        prior = float((powers - 1 / 3).square().sum()) / 2  # which weighs as much as one row
        return float(torch.nn.functional.cross_entropy(logits, labels)) + prior / len(labels)

    best = torch.tensor([*found.powers.values()])
    generator = torch.Generator().manual_seed(0)
    around = [(best + 0.2 * torch.randn(3, generator=generator)).clamp(0, MOST_POWER) for _ in range(200)]
    assert nll(best) <= min(map(nll, around)) + 1e-6
    assert all(0 <= power <= MOST_POWER for power in found.powers.values())


@pytest.mark.parametrize(("place", "part", "other"), [(0, "states", "companion"), (7, "companion", "states")])
def test_a_part_that_tells_nothing_has_little_weight(place: int, part: str, other: str) -> None:
    found = pooled(BOTH, told_by(place), told_by(place, seed=1))
    assert found.powers[part] > 0.7
    head, n_base = found.whole.head, len(found.parts["states"].head.directions)
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
        n_directions = len(found.parts[name].head.directions)
        per_state = found.parts[name].precisions[0] / found.powers[name] ** 2
        prior.append(torch.full((n_directions,), per_state * n_directions / head.center[at].numel()))
    variance = 1 / (torch.outer(z.square().sum(0), values.clamp_min(0)) + torch.cat(prior)[:, None])
    torch.testing.assert_close(head.deviation.double(), variance.sqrt(), rtol=1e-3, atol=1e-6)


def test_without_a_companion_states_and_counts_are_the_parts() -> None:
    train, validation = linear_task(80, 1), linear_task(80, 2)
    found = pooled(CONFIG, train, validation)
    assert list(found.powers) == ["counts", "states"]
    assert found.whole.head.config == replace(CONFIG, n_directions=len(found.whole.head.weight))
    alone = Regression.of(CONFIG, *train).blank
    torch.testing.assert_close(found.whole.head.directions, alone.directions)
    of_states, of_counts, _ = found.whole.precisions
    assert of_states == pytest.approx(found.parts["states"].precisions[0] / found.powers["states"] ** 2)
    assert of_counts == pytest.approx(found.parts["counts"].precisions[1] / max(found.powers["counts"], 1e-3) ** 2)


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


def test_training_shows_each_part_and_draws_from_the_product() -> None:
    train, validation = told_by(0, 7), told_by(0, 7, seed=1)
    lora = Posterior({}, PosteriorConfig(method="lora"), seed=0)
    trained = fit_parts(BOTH, *train, *validation, SamplingConfig(n_samples=8), lora)
    assert [part.name for part in trained.parts] == [
        "regression on character n-grams",
        "regression on frozen states",
        "regression on the companion's states",
        "head, posterior mean",
        "head, 8 draws",
    ]
    assert trained.config.n_states == N_BASE + N_COMPANION
    assert trained.familiarity.config.n_states == N_BASE
    drawn = trained.posterior.sample(8, torch.Generator().manual_seed(0)).weights
    assert np.ptp(drawn.numpy(), 0).max() > 0
