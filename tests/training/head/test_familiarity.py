"""A distance fitted on toy states notices what its kind looks for, and the kind is chosen without foreign rows."""

import logging

import pytest
import torch
from torch import Tensor

from blora.config.head import MOST_REFERENCE
from blora.decision.curves import auroc
from blora.decision.familiarity import MOST_BYTES, Familiarity, p_value, stored_bytes
from blora.errors import ShapeError
from blora.training.head.familiarity import KINDS, SHARPNESS, SHRINKAGE, _fit, _folds, _of_kind, fit_familiarity

DEPTHS = (3, 5, 9)
F = 60


def rows(n: int, n_labels: int, *, spread: float, seed: int, of: int = 7) -> tuple[Tensor, Tensor]:
    """Return states of labels whose means are `spread` apart in ten of sixty dimensions, and the labels."""
    means = torch.zeros(n_labels, F)
    means[:, -10:] = spread * torch.randn(n_labels, 10, generator=torch.Generator().manual_seed(of))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_labels
    noise = torch.randn(n, F, generator=generator) * torch.linspace(2, 0.2, F)
    return means[labels] + noise, labels


def test_of_very_many_validation_rows_the_reference_has_some_of_every_label() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(60, 8, generator=generator)
    sorted_by_label = torch.cat([torch.zeros(MOST_REFERENCE, 8), torch.full((500, 8), 9.0)])
    found = fit_familiarity((1, 2), states, sorted_by_label).familiarity
    assert found.config.n_reference == MOST_REFERENCE
    far = int((found.reference > found.reference.min() + 1).sum())
    assert 300 < far < 600


def test_with_many_labels_the_direction_notices_what_resembles_none(caplog: pytest.LogCaptureFixture) -> None:
    train, labels = rows(1500, 40, spread=1.0, seed=0)
    validation, validation_labels = rows(400, 40, spread=1.0, seed=1)
    with caplog.at_level(logging.INFO, "blora.training.head.familiarity"):
        fitted = fit_familiarity(DEPTHS, train, validation, labels, validation_labels)
    assert [candidate.kind for candidate in fitted.candidates] == ["gaussian", "direction", "both"]
    assert caplog.text.count("of labels that are left out") == 3
    earned = {candidate.kind: candidate.auroc for candidate in fitted.candidates}
    assert fitted.familiarity.config.kind == max(earned, key=lambda kind: earned[kind])
    assert earned["direction"] > earned["gaussian"]
    fresh, _ = rows(400, 40, spread=1.0, seed=2)
    foreign, _ = rows(400, 40, spread=1.0, seed=3, of=8)  # other means
    told = auroc(fitted.familiarity.distance(torch.cat([fresh, foreign])), torch.arange(800) >= 400)
    assert told is not None
    assert told > 0.8


def test_each_judge_is_standardised_by_the_validation_rows_of_the_labels_that_it_knows() -> None:
    (train, labels), (validation, own) = rows(120, 4, spread=1.0, seed=0), rows(80, 4, spread=1.0, seed=1)
    judged: dict[bool, list[float]] = {True: [], False: []}
    for held in range(4):
        familiar, fitted = own != held, _fit(DEPTHS, train[labels != held], labels[labels != held])
        asked = torch.cat([validation, train[labels == held]])
        foreign = torch.cat([~familiar, torch.ones(30, dtype=torch.bool)])
        for known_only, rows_of_reference in ((True, validation[familiar]), (False, validation)):
            told = auroc(_of_kind(fitted, "both", rows_of_reference).distance(asked), foreign)
            assert told is not None
            judged[known_only].append(told)
    [both] = [one for one in fit_familiarity(DEPTHS, train, validation, labels, own).candidates if one.kind == "both"]
    assert both.auroc == pytest.approx(sum(judged[True]) / 4, abs=1e-6)
    assert both.auroc != pytest.approx(sum(judged[False]) / 4, abs=1e-4)


def test_without_labels_the_gaussian_notices_another_distribution() -> None:
    train, _ = rows(400, 3, spread=1.0, seed=0)
    validation, _ = rows(300, 3, spread=1.0, seed=1)
    fitted = fit_familiarity(DEPTHS, train, validation)
    found = fitted.familiarity
    assert (fitted.candidates, found.config.kind, found.config.n_axes) == ((), "gaussian", 0)
    fresh = p_value(found.distance(rows(300, 3, spread=1.0, seed=2)[0]), found.distance(validation))
    assert float((fresh <= 0.05).double().mean()) == pytest.approx(0.05, abs=0.04)
    foreign = found.distance(torch.randn(300, F, generator=torch.Generator().manual_seed(3)).flip(1) * 2)
    assert float((p_value(foreign, found.distance(validation)) <= 0.05).double().mean()) > 0.9


def test_validation_rows_have_a_mean_of_0_and_a_deviation_of_1() -> None:
    train, _ = rows(400, 3, spread=1.0, seed=0)
    validation, _ = rows(300, 3, spread=1.0, seed=1)
    distances = fit_familiarity(DEPTHS, train, validation).familiarity.distance(validation)
    assert float(distances.mean()) == pytest.approx(0, abs=1e-3)
    assert float(distances.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_the_fit_is_the_same_twice_and_needs_no_order_of_labels() -> None:
    train, labels = rows(300, 10, spread=1.0, seed=0)
    validation, validation_labels = rows(100, 10, spread=1.0, seed=1)
    one = fit_familiarity(DEPTHS, train, validation, labels, validation_labels)
    two = fit_familiarity(DEPTHS, train, validation, labels, validation_labels)
    renamed = fit_familiarity(DEPTHS, train, validation, 3 * labels + 5, 3 * validation_labels + 5)
    expected = one.familiarity.distance(validation)
    assert torch.equal(two.familiarity.distance(validation), expected)
    torch.testing.assert_close(renamed.familiarity.distance(validation), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("n_labels", [1, 2, 7])
def test_few_rows_give_finite_distances(n: int, n_labels: int) -> None:
    train, labels = rows(n, n_labels, spread=1.0, seed=0)
    validation, validation_labels = rows(8, n_labels, spread=1.0, seed=1)
    found = fit_familiarity(DEPTHS, train, validation, labels, validation_labels).familiarity
    assert found.distance(validation).isfinite().all()
    assert found.distance(100 * validation).isfinite().all()


@pytest.mark.parametrize("n", [F // 3, 3 * F])
def test_the_axes_are_those_of_the_covariances_between_and_within_labels(n: int) -> None:
    """With few rows or many: of unit length within labels, and as strong between them as the eigenvalues are."""
    states, labels = rows(n, 4, spread=1.0, seed=0)
    kept = (labels != 0) | (torch.arange(n) % 8 == 0)  # half as many rows of the first label
    states, labels, n = states[kept], labels[kept], int(kept.sum())
    fitted = _fit(DEPTHS, states, labels)
    x = ((states - states.mean(0)) / states.std(0, correction=0)).double()
    means = torch.stack([x[labels == k].mean(0) for k in range(4)])
    centred = x - means[labels]
    covariance = centred.T @ centred / n
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.diagonal().diag()
    between = means.T @ (labels.bincount()[:, None] / n * means)
    axes = fitted.axes.double()
    assert axes.shape == (3, F)
    torch.testing.assert_close(axes @ covariance @ axes.T, torch.eye(3, dtype=axes.dtype), rtol=0, atol=2e-3)
    strengths = torch.linalg.eigvals(torch.linalg.solve(covariance, between)).real.sort(descending=True).values[:3]
    torch.testing.assert_close(axes @ between @ axes.T, strengths.diag(), rtol=2e-3, atol=2e-3 * float(strengths[0]))


def test_few_labels_are_left_out_one_by_one_and_many_in_groups_of_similar_ones() -> None:
    states, labels = rows(70, 7, spread=1.0, seed=0)
    assert [fold.tolist() for fold in _folds(states, labels)] == [[k] for k in range(7)]
    pairs = 20 * torch.eye(5, F)[torch.arange(100) % 5] + rows(100, 10, spread=0.1, seed=1)[0]
    folds = [sorted(fold.tolist()) for fold in _folds(pairs, torch.arange(100) % 10)]
    assert sorted(folds) == [[k, k + 5] for k in range(5)]


def test_labels_that_leave_too_little_behind_are_not_left_out() -> None:
    train, labels = rows(60, 3, spread=1.0, seed=0)
    three = fit_familiarity(DEPTHS, train, train[:20], labels, labels[:20])
    assert (three.candidates, three.familiarity.config.kind) == ((), "gaussian")  # two would be left to fit axes to
    train, labels = rows(60, 4, spread=1.0, seed=0)
    of_one = labels == 0  # all validation rows have one label, without which there are none
    fitted = fit_familiarity(DEPTHS, train, train[of_one], labels, labels[of_one])
    assert [candidate.kind for candidate in fitted.candidates] == [*KINDS]
    assert fitted.familiarity.distance(train).isfinite().all()


def test_each_kind_has_its_sharpness_and_the_same_distances_once_it_is_stored() -> None:
    (train, labels), (validation, _) = rows(200, 8, spread=1.0, seed=0), rows(100, 8, spread=1.0, seed=1)
    for kind in KINDS:
        found = _of_kind(_fit(DEPTHS, train, labels), kind, validation)
        assert found.config.sharpness == (SHARPNESS if kind == "direction" else None)
        stored = Familiarity.of(found.config, found.tensors())
        assert torch.equal(stored.distance(validation), found.distance(validation))
        torch.testing.assert_close(stored.reference.sort().values, stored.distance(validation).sort().values)


def test_labels_with_the_same_rows_have_no_axis_between_them() -> None:
    states, labels = rows(60, 3, spread=1.0, seed=0)
    again = torch.where(labels == 0, 3, labels)  # the first label's rows once more, under another name
    fitted = _fit(DEPTHS, torch.cat([states, states]), torch.cat([labels, again]))
    assert len(fitted.axes) == 2
    of_nothing = _fit(DEPTHS, torch.ones(60, F), labels)
    assert of_nothing.axes.isfinite().all()
    assert _of_kind(of_nothing, "both", torch.ones(20, F)).distance(states).isfinite().all()


def test_constant_states_are_no_trouble() -> None:
    train, labels = rows(60, 4, spread=1.0, seed=0)
    train[:, 5:25] = 1.0
    found = fit_familiarity(DEPTHS, train, train[:20], labels, labels[:20]).familiarity
    assert found.distance(train).isfinite().all()


def test_a_state_that_differs_by_rounding_alone_makes_no_question_unfamiliar() -> None:
    states = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    states[:, 3] = 7.0
    familiarity = fit_familiarity((1, 2), states[:300], states[300:400]).familiarity
    before = familiarity.distance(states[400:])
    states[400:, 3] = torch.nextafter(states[400:, 3], torch.tensor(8.0))
    assert torch.allclose(familiarity.distance(states[400:]), before, atol=1e-4)


def test_a_wide_model_with_many_labels_stays_within_the_limit() -> None:
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(765, 5 * 4096, generator=generator), torch.arange(765) % 255
    fitted = _fit((1, 2, 3, 4, 5), train, labels)
    assert (fitted.config.kind, fitted.config.n_directions) == ("both", 64)
    assert 64 <= fitted.config.n_axes < 96
    complete = _of_kind(fitted, "both", torch.randn(2000, 5 * 4096, generator=generator))
    assert complete.config.n_reference == 2000
    assert 0.9 * MOST_BYTES < stored_bytes(complete.config) <= MOST_BYTES


def test_wrong_shapes_are_refused() -> None:
    train, labels = rows(60, 4, spread=1.0, seed=0)
    with pytest.raises(ShapeError, match="expected"):
        fit_familiarity(DEPTHS, train, train[:, :30])
    with pytest.raises(ShapeError, match="expected"):
        fit_familiarity(DEPTHS, train, train, labels[:59], labels)


def four_each(choices: Tensor) -> tuple[Tensor, Tensor]:
    """Choices of four to a question, as `Familiarity.distance` takes them."""
    return choices, torch.arange(len(choices) // 4).repeat_interleave(4)


def test_choices_of_another_kind_are_noticed_behind_familiar_prompts() -> None:
    (train, _), (validation, _), (fresh, _) = (rows(400, 3, spread=1.0, seed=seed) for seed in (0, 1, 2))
    own = [rows(1600, 2, spread=0.5, seed=seed, of=11)[0] for seed in (3, 4, 5)]
    found = fit_familiarity(DEPTHS, train, validation, choices=(own[0], four_each(own[1]))).familiarity
    assert found.config.kind == "choices"
    torch.testing.assert_close(found.choice_center, own[0][:, : found.config.n_low].mean(0))  # not the validation rows'
    assert stored_bytes(found.config) <= MOST_BYTES
    again = found.distance(validation, four_each(own[1]))
    torch.testing.assert_close(found.reference.sort().values, again.sort().values)
    usual = p_value(found.distance(fresh, four_each(own[2])), found.reference)
    assert 0.02 < float((usual <= 0.05).double().mean()) < 0.09
    other = 2 * rows(1600, 2, spread=0.5, seed=6, of=12)[0]
    assert float((p_value(found.distance(fresh, four_each(other)), found.reference) <= 0.05).double().mean()) > 0.9
    # A prompt from elsewhere is noticed behind familiar choices too.
    far = found.distance(2 * fresh, four_each(own[2]))
    assert float((p_value(far, found.reference) <= 0.05).double().mean()) > 0.9


def test_the_rounding_of_a_prompt_that_never_changes_makes_no_question_foreign() -> None:
    own = [rows(1600, 2, spread=0.5, seed=seed, of=11)[0] for seed in (3, 4, 5)]
    prompt = rows(1, 1, spread=0, seed=0)[0]
    alone, together = prompt.repeat(400, 1), prompt.repeat(400, 1) * (1 + 1e-6)
    found = fit_familiarity(DEPTHS, together, together, choices=(own[0], four_each(own[1]))).familiarity
    for asked in (alone, together):
        usual = p_value(found.distance(asked, four_each(own[2])), found.reference)
        assert 0.02 < float((usual <= 0.05).double().mean()) < 0.09
    other = 2 * rows(1600, 2, spread=0.5, seed=6, of=12)[0]
    assert float((p_value(found.distance(alone, four_each(other)), found.reference) <= 0.05).double().mean()) > 0.9


def test_more_choices_make_a_question_neither_more_familiar_nor_less() -> None:
    (train, _), (validation, _), (fresh, _) = (rows(400, 3, spread=1.0, seed=seed) for seed in (0, 1, 2))
    own = [rows(1600, 2, spread=0.5, seed=seed, of=11)[0] for seed in (3, 4)]
    found = fit_familiarity(DEPTHS, train, validation, choices=(own[0], four_each(own[1]))).familiarity
    for n in (2, 4, 60):
        choices = rows(400 * n, 2, spread=0.5, seed=n, of=11)[0]
        distances = found.distance(fresh, (choices, torch.arange(400).repeat_interleave(n)))
        foreign = found.distance(2 * fresh, (choices, torch.arange(400).repeat_interleave(n)))
        assert float((p_value(distances, found.reference) <= 0.05).double().mean()) < 0.1
        assert float((p_value(foreign, found.reference) <= 0.05).double().mean()) > 0.9


def test_choices_that_span_few_directions_have_the_prompt_s_number_of_them() -> None:
    (train, _), (validation, _) = (rows(400, 3, spread=1.0, seed=seed) for seed in (0, 1))
    flat = torch.zeros(400, F)
    flat[:, :2] = torch.randn(400, 2, generator=torch.Generator().manual_seed(7))
    choices = flat, torch.arange(400)
    found = fit_familiarity(DEPTHS, train, validation, choices=(flat, choices)).familiarity
    assert found.choice_directions.shape == found.directions.shape
    assert found.distance(validation, choices).isfinite().all()
    assert Familiarity.of(found.config, found.tensors()).distance(validation, choices).isfinite().all()
