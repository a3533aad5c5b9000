"""Training rows out of fold: no head answers a row that it was fitted to, and a recalibration gains by them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

import pytest
import torch

from blora.config import HeadConfig, PosteriorConfig, SamplingConfig
from blora.decision.metrics import metrics
from blora.decision.temperature import FEW_ROWS, Recalibration, fit_recalibration, temper
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import DecisionHead, Features, HeadPosterior
from blora.posterior.draws import NO_LORA
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.head.crossfit import LEAST_TEXTS, N_FOLDS, Held, folds_of, recalibrated
from blora.training.head.fit import Regression
from blora.training.head.pool import pool
from blora.training.head.train import TrainedHead, fit_parts
from blora.training.rows.packed import LabelledRow, labels_of
from tests.heads import row_after_row
from tests.training.head.test_fit import CONFIG, linear_rows, linear_task, pointer_task

SAMPLING = SamplingConfig(n_samples=8)
PRECISIONS = (100.0, 1.0, float("inf"))
LORA = Posterior({}, PosteriorConfig(method="lora"), seed=0)
Task = tuple[Features, list[LabelledRow]]


def solved(features: Features, rows: Sequence[LabelledRow], config: HeadConfig = CONFIG) -> DecisionHead:
    return Regression.of(config, features, rows).solve(*PRECISIONS, None)


def with_prompts(task: Task) -> Task:
    """The same rows, with the states of their prompts, which a familiarity reads."""
    features, rows = task
    return replace(features, prompt=features.states), rows


def fitted(train: Task, validation: Task) -> TrainedHead:
    return fit_parts(CONFIG, train[0], train[1], validation[0], validation[1], SAMPLING, LORA)


def test_a_fold_is_answered_by_a_head_that_has_not_seen_its_texts() -> None:
    features, rows = linear_task(60, 1)
    rows = [replace(row, text=f"text {i // 2}") for i, row in enumerate(rows)]  # two rows about each text
    folds = folds_of(solved, features, rows, seed=0)
    assert len(folds) == N_FOLDS
    placed = {id(row): i for i, row in enumerate(rows)}
    answered = [placed[id(row)] for fold in folds for row in fold.rows]
    assert sorted(answered) == list(range(60))
    for fold in folds:
        own = [placed[id(row)] for row in fold.rows]
        others = [i for i in range(60) if i not in own]
        assert {row.text for row in fold.rows}.isdisjoint(rows[i].text for i in others)
        torch.testing.assert_close(fold.features.states, features.states[own])
        expected = Regression.of(CONFIG, features.at(others), [rows[i] for i in others]).solve(*PRECISIONS, None)
        for name, tensor in expected.tensors().items():
            torch.testing.assert_close(fold.head.tensors()[name], tensor)


def test_labels_are_spread_evenly_and_a_label_of_one_text_is_in_no_fold() -> None:
    rows = linear_rows([0] * 50 + [1] * 10 + [2])
    features = Features(torch.randn(61, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(61, 0))
    folds = folds_of(solved, features, rows, seed=3)
    counts = [labels_of(fold.rows).bincount(minlength=3).tolist() for fold in folds]
    assert counts == [[10, 2, 0]] * N_FOLDS


def test_rows_about_few_texts_have_no_folds() -> None:
    features, rows = linear_task(60, 1)
    few = [replace(row, text=f"text {i % (LEAST_TEXTS - 1)}") for i, row in enumerate(rows)]
    assert folds_of(solved, features, few, seed=0) == []


def test_rows_with_more_and_with_fewer_choices_recalibrate_together() -> None:
    features, rows = pointer_task(40, 1)
    flat = row_after_row(features, [row.row.n_choices for row in rows])
    config = HeadConfig(depths=(1,), n_states=5, n_directions=5)
    folds = folds_of(partial(solved, config=config), flat, rows, seed=0)
    two = [i for i, row in enumerate(rows) if row.row.n_choices == 2]
    held = [Held(folds[0].head, flat.at(two), [rows[i] for i in two]), *folds]
    trial = recalibrated(1.0, held, LORA, SAMPLING)
    assert (trial.n_rows, trial.n_recalibrating) == (len(two), len(two) + 40)
    by_hand = [one.log_probs(1.0, LORA, SAMPLING).exp() for one in held]
    assert by_hand[0].shape[-1] == 2
    padded = torch.cat([torch.nn.functional.pad(part, (0, 3 - part.shape[-1])) for part in by_hand], 1).log()
    labels = torch.cat([labels_of(one.rows) for one in held])
    expected = fit_recalibration(padded, labels, torch.ones(len(labels)), powers=(-1.0, 1.0))
    assert (trial.temperature, trial.lapse) == pytest.approx((expected.temperature, expected.lapse), rel=0.01, abs=1e-4)


def test_few_validation_rows_recalibrate_with_the_training_rows_out_of_fold() -> None:
    train, validation = with_prompts(linear_task(80, 1)), with_prompts(linear_task(20, 2))
    trained = fitted(train, validation)
    served, trial = trained.served, trained.trial
    assert (served.n_rows, served.n_recalibrating, served.scale) == (20, 100, trial.scale)
    best = trained.fitted["both"]
    held = [Held(best.head, *validation), *folds_of(trained.again, *train, SAMPLING.seed)]
    log_probs = torch.cat([one.log_probs(trial.scale, LORA, SAMPLING) for one in held], 1)
    labels = torch.cat([labels_of(one.rows) for one in held])
    by_hand = fit_recalibration(log_probs, labels, torch.ones(100), powers=(-1.0, 1.0))
    assert served.temperature == pytest.approx(by_hand.temperature, rel=0.01)
    own = temper(log_probs[:, :20], served.temperature, served.lapse).mean(0)
    assert served.metrics.nll == pytest.approx(metrics(own, labels[:20]).nll, rel=1e-4)
    # Comparisons have the recalibration of the validation rows alone, for every part and for a LoRA alike.
    assert trial.n_recalibrating == 20
    of_validation = fit_recalibration(log_probs[:, :20], labels[:20], torch.ones(20), powers=(-1.0, 1.0))
    alone = temper(log_probs[:, :20], of_validation.temperature, of_validation.lapse).mean(0)
    assert trial.metrics.nll == pytest.approx(metrics(alone, labels[:20]).nll, rel=1e-3)
    assert trial.metrics.nll != served.metrics.nll
    assert trained.parts[-1].metrics == trial.metrics


def test_above_a_lora_validation_rows_recalibrate_alone() -> None:
    train, validation = with_prompts(linear_task(80, 1)), with_prompts(linear_task(20, 2))
    lora = Posterior({"layer": (4, 4)}, PosteriorConfig(method="lora", rank=2), seed=0)
    trained = fit_parts(CONFIG, train[0], train[1], validation[0], validation[1], SAMPLING, lora, alone=False)
    assert trained.served == trained.trial
    product = pool(CONFIG, *train, *validation, NO_LORA, seed=None).whole
    torch.testing.assert_close(trained.fitted["both"].head.weight, product.head.weight)
    torch.testing.assert_close(trained.fitted["both"].head.count_weight, product.head.count_weight)


def test_enough_validation_rows_recalibrate_alone() -> None:
    trained = fitted(with_prompts(linear_task(80, 1)), with_prompts(linear_task(FEW_ROWS, 2)))
    assert (trained.served.n_rows, trained.served.n_recalibrating) == (FEW_ROWS, FEW_ROWS)


def test_the_probabilities_of_few_rows_are_better_for_it() -> None:
    new, new_rows = linear_task(1000, 99)
    with_folds: list[float] = []
    alone: list[float] = []
    for seed in range(8):
        train, validation = with_prompts(linear_task(90, seed)), with_prompts(linear_task(10, 50 + seed))
        trained = fitted(train, validation)
        draws = trained.posterior.sample(SAMPLING.n_samples, generator_of(SAMPLING.seed))
        log_probs = head_log_probs(draws, [row.row for row in new_rows], new)
        served = Recalibration(trained.served.temperature, lapse=trained.served.lapse)
        product = pool(CONFIG, *train, *validation, NO_LORA, seed=None).whole.head.widen(trained.served.scale)
        others = HeadPosterior(product, LORA).sample(SAMPLING.n_samples, generator_of(SAMPLING.seed))
        few = head_log_probs(others, [row.row for row in validation[1]], validation[0])
        without = fit_recalibration(few, labels_of(validation[1]), torch.ones(10), powers=(-1.0, 1.0))
        of_others = head_log_probs(others, [row.row for row in new_rows], new)
        for found, said, of in ((with_folds, log_probs, served), (alone, of_others, without)):
            found.append(metrics(temper(said, of.temperature, of.lapse).mean(0), labels_of(new_rows)).nll)
    assert fmean(with_folds) < fmean(alone) - 0.01
