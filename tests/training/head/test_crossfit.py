"""Training rows out of fold: no head answers a row that it was fitted to, and a recalibration gains by them."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from blora.config import HeadConfig, PosteriorConfig, SamplingConfig
from blora.decision.metrics import metrics
from blora.decision.temperature import FEW_ROWS, Recalibration, fit_recalibration, temper
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import Features
from blora.posterior.posterior import Posterior
from blora.training.head.crossfit import N_FOLDS, Held, answers, folds_of
from blora.training.head.fit import Regression
from blora.training.head.train import TrainedHead, fit_parts
from blora.training.rows.packed import LabelledRow, labels_of
from tests.heads import row_after_row
from tests.training.head.test_fit import CONFIG, linear_rows, linear_task, pointer_task

SAMPLING = SamplingConfig(n_samples=8)
LORA = Posterior({}, PosteriorConfig(method="lora"), seed=0)
Task = tuple[Features, list[LabelledRow]]


def with_prompts(task: Task) -> Task:
    """The same rows, with the states of their prompts, which a familiarity reads."""
    features, rows = task
    return replace(features, prompt=features.states), rows


def fitted(train: Task, validation: Task) -> TrainedHead:
    return fit_parts(CONFIG, train[0], train[1], validation[0], validation[1], SAMPLING, LORA)


def test_a_fold_is_answered_by_a_head_that_has_not_seen_its_texts() -> None:
    features, rows = linear_task(60, 1)
    rows = [replace(row, text=f"text {i // 2}") for i, row in enumerate(rows)]  # two rows about each text
    folds = folds_of(CONFIG, features, rows, seed=0)
    assert len(folds) == N_FOLDS
    placed = {id(row): i for i, row in enumerate(rows)}
    answered = [placed[id(row)] for fold in folds for row in fold.rows]
    assert sorted(answered) == list(range(60))
    for fold in folds:
        own = [placed[id(row)] for row in fold.rows]
        others = [i for i in range(60) if i not in own]
        assert {row.text for row in fold.rows}.isdisjoint(rows[i].text for i in others)
        torch.testing.assert_close(fold.features.states, features.states[own])
        expected = Regression.of(CONFIG, features.at(others), [rows[i] for i in others])
        assert (fold.regression.z == expected.z).all()
        assert (fold.regression.labels == expected.labels).all()


def test_labels_are_spread_evenly_and_a_label_of_one_text_is_in_no_fold() -> None:
    rows = linear_rows([0] * 50 + [1] * 10 + [2])
    features = Features(torch.randn(61, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(61, 4))
    folds = folds_of(CONFIG, features, rows, seed=3)
    counts = [labels_of(fold.rows).bincount(minlength=3).tolist() for fold in folds]
    assert counts == [[10, 2, 0]] * N_FOLDS


def test_rows_of_folds_are_answered_like_rows_alone() -> None:
    features, rows = pointer_task(40, 1)
    flat = row_after_row(features, [row.row.n_choices for row in rows])
    config = HeadConfig(depths=(1,), n_states=5, n_directions=5)
    folds = folds_of(config, flat, rows, seed=0)
    heads = [fold.regression.solve(100.0, 1.0, float("inf"), None) for fold in folds]
    found = answers(folds, [head.mean(LORA.mean()) for head in heads])
    assert found.shape == (1, 40, 3)
    at = 0
    for fold, head in zip(folds, heads, strict=True):
        alone = head_log_probs(head.mean(LORA.mean()), [row.row for row in fold.rows], fold.features)
        part = found[:, at : at + len(fold.rows)]
        torch.testing.assert_close(part[..., : alone.shape[-1]], alone)
        assert part[..., alone.shape[-1] :].isneginf().all()
        at += len(fold.rows)


def test_few_validation_rows_recalibrate_with_the_training_rows_out_of_fold() -> None:
    train, validation = with_prompts(linear_task(80, 1)), with_prompts(linear_task(20, 2))
    trained = fitted(train, validation)
    assert (trained.trial.n_rows, trained.trial.n_recalibrating) == (20, 100)
    states = trained.fitted["states"]
    held = [Held(Regression.of(CONFIG, *train), *validation), *folds_of(CONFIG, *train, SAMPLING.seed)]
    heads = [one.regression.solve(*states.precisions, None) for one in held]
    log_probs = answers(held, [head.mean(LORA.mean()) for head in heads])
    labels = torch.cat([labels_of(one.rows) for one in held])
    by_hand = fit_recalibration(log_probs, labels, torch.ones(100), powers=(-1.0, 1.0))
    assert states.trial.temperature == pytest.approx(by_hand.temperature, rel=0.01)
    own = temper(log_probs[:, :20], states.trial.temperature, states.trial.lapse).mean(0)
    assert states.trial.metrics.nll == pytest.approx(metrics(own, labels[:20]).nll, rel=1e-4)


def test_enough_validation_rows_recalibrate_alone() -> None:
    trained = fitted(with_prompts(linear_task(80, 1)), with_prompts(linear_task(FEW_ROWS, 2)))
    assert (trained.trial.n_rows, trained.trial.n_recalibrating) == (FEW_ROWS, FEW_ROWS)


def test_the_probabilities_of_few_rows_are_better_for_it() -> None:
    new, new_rows = linear_task(1000, 99)
    with_folds: list[float] = []
    alone: list[float] = []
    for seed in range(8):
        train, validation = with_prompts(linear_task(90, seed)), with_prompts(linear_task(10, 50 + seed))
        trained = fitted(train, validation)
        draws = trained.posterior.mean()
        log_probs = head_log_probs(draws, [row.row for row in new_rows], new)
        few = head_log_probs(draws, [row.row for row in validation[1]], validation[0])
        without = fit_recalibration(few, labels_of(validation[1]), torch.ones(10), powers=(-1.0, 1.0))
        trial = trained.fitted["both"].trial
        for found, of in ((with_folds, Recalibration(trial.temperature, lapse=trial.lapse)), (alone, without)):
            found.append(metrics(temper(log_probs, of.temperature, of.lapse).mean(0), labels_of(new_rows)).nll)
    assert fmean(with_folds) < fmean(alone) - 0.01
