"""The table of scores, the mathematics behind its rows, and that everything else is made from it."""

import math
from collections.abc import Callable
from dataclasses import fields
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blora.client.answers import PolicyInForce
from blora.client.answers import Prediction as Answer
from blora.client.policies import AbstainAbove, AbstainBelow
from blora.decision.abstention import Policy
from blora.decision.calibration import Goal
from blora.decision.uncertainty import Prediction
from blora.errors import ConfigError, ShapeError
from blora.scores import (
    DRAWN,
    SCORES,
    TABLE,
    Score,
    ScoreName,
    entropy,
    expected_entropy,
    leads,
    mutual_information,
    predictive_entropy,
    predictive_mean,
    scores_of,
)
from blora.server.monitoring.build import Build
from blora.server.monitoring.metrics import ServerMetrics
from blora.server.schemas import requests

LOG_2 = math.log(2)

per_row = pytest.mark.parametrize("score", DRAWN.values(), ids=lambda score: score.name)
per_threshold = pytest.mark.parametrize("score", SCORES.values(), ids=lambda score: score.name)


@st.composite
def probabilities(draw: st.DrawFn) -> Tensor:
    """(S, B, C) in float64, from nearly uniform to one-hot, some choices missing."""
    S, B, C = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    spread = draw(st.sampled_from([0.01, 1.0, 10.0, 1000.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = spread * torch.randn(S, B, C, generator=generator, dtype=torch.float64)
    logits[:, 0, 2:] = -torch.inf
    return logits.softmax(-1)


# The table


# What policies, answers and metrics of released servers call the scores: these names stay.
NAMES = {
    "confidence": ("min_confidence", "low_confidence", "blora_confidence"),
    "predictive_entropy": (
        "max_predictive_entropy", "high_predictive_entropy", "blora_predictive_entropy_nats",
    ),
    "mutual_information": (
        "max_mutual_information", "high_mutual_information", "blora_mutual_information_nats",
    ),
    "margin": ("min_margin", "low_margin", "blora_margin"),
    "familiarity": ("min_familiarity", "unfamiliar_question", "blora_familiarity"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_names_are_those_of_the_contract(name: str) -> None:
    score = SCORES[name]
    assert (score.threshold, score.reason, score.metric) == NAMES[name]


def test_every_name_is_there_once() -> None:
    assert len({score.name for score in TABLE}) == len(TABLE)
    assert get_args(ScoreName) == tuple(SCORES)


# The smallest and the largest value for a number of choices and of draws. The mutual information is the Jensen-Shannon
# divergence of the draws, which is at most ln S too.
RANGES: dict[str, Callable[[int, int], tuple[float, float]]] = {
    "confidence": lambda n_choices, _: (1 / n_choices, 1.0),
    "predictive_entropy": lambda n_choices, _: (0.0, math.log(n_choices)),
    "expected_entropy": lambda n_choices, _: (0.0, math.log(n_choices)),
    "mutual_information": lambda n_choices, n_samples: (0.0, math.log(min(n_choices, n_samples))),
    "margin": lambda *_: (0.0, 1.0),
}


@per_row
@given(probs=probabilities())
def test_a_score_stays_in_its_range(score: Score, probs: Tensor) -> None:
    least, greatest = RANGES[score.name](probs.shape[-1], len(probs))
    values = score.values(probs)
    assert values.shape == probs.shape[1:2]
    assert bool(((values >= least - 1e-12) & (values <= greatest + 1e-12)).all())
    assert 0 <= least < greatest <= score.greatest or len(probs) < score.fewest_draws


# Draws that know nothing, that are sure and agree, and that are sure and disagree.
ENDS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "confidence": (lambda flat, sure, split: flat, lambda flat, sure, split: sure),
    "predictive_entropy": (lambda flat, sure, split: sure, lambda flat, sure, split: flat),
    "expected_entropy": (lambda flat, sure, split: split, lambda flat, sure, split: flat),
    "mutual_information": (lambda flat, sure, split: flat, lambda flat, sure, split: split),
    "margin": (lambda flat, sure, split: flat, lambda flat, sure, split: sure),
}


@per_row
@pytest.mark.parametrize(("n_choices", "n_samples"), [(2, 5), (5, 2), (3, 3)])
def test_the_ends_of_the_range_are_reached(score: Score, n_choices: int, n_samples: int) -> None:
    flat = torch.full((n_samples, 1, n_choices), 1 / n_choices, dtype=torch.float64)
    draws = torch.arange(min(n_samples, n_choices))
    split = torch.nn.functional.one_hot(draws, n_choices).double()[:, None]
    found = [float(score.of(end(flat, split[:1], split))) for end in ENDS[score.name]]
    assert found == pytest.approx(RANGES[score.name](n_choices, n_samples), abs=1e-12)


@per_row
def test_a_score_is_certain_where_its_direction_says(score: Score) -> None:
    sure = torch.tensor([[[1.0, 0.0, 0.0]]] * 4)
    assert score.values(sure).item() == (1.0 if score.high_is_certain else 0.0)
    values = torch.tensor([0.2, 0.7])
    assert (score.certainty(values)[1] > score.certainty(values)[0]).item() == score.high_is_certain
    assert torch.equal(score.certainty(score.certainty(values)), values)
    assert score.fails(0.2, threshold=0.7) == score.high_is_certain
    assert score.fails(0.7, threshold=0.2) != score.high_is_certain
    assert not score.fails(0.2, threshold=0.2)
    limits = torch.tensor([0.2, 0.7, 0.45])
    assert score.passes(limits, 0.45).tolist() == [not score.high_is_certain, score.high_is_certain, True]


@per_row
def test_nan_passes_no_threshold(score: Score) -> None:
    for value, threshold in ((math.nan, 0.5), (0.5, math.nan)):
        assert score.fails(value, threshold)
        assert not score.passes(value, threshold)
        assert not score.passes(torch.tensor([value]), threshold).any()


@per_row
@given(probs=probabilities())
def test_a_score_is_the_least_of_the_means_of_its_parts(score: Score, probs: Tensor) -> None:
    torch.testing.assert_close(score.parts(probs).mean(0).amin(-1), score.of(probs), atol=1e-12, rtol=1e-9)


@per_row
@given(probs=probabilities())
def test_choices_that_a_row_does_not_have_change_no_score(score: Score, probs: Tensor) -> None:
    wide = torch.cat([probs, torch.zeros(*probs.shape[:2], 2, dtype=torch.float64)], -1)
    torch.testing.assert_close(score.of(wide), score.of(probs))


def test_only_the_familiarity_is_no_function_of_the_draws() -> None:
    [score] = [score for score in TABLE if score.name not in DRAWN]
    assert (score.name, score.of, score.parts) == ("familiarity", None, None)
    assert score.fails(0.01, threshold=0.05)
    assert not score.fails(0.05, threshold=0.05)


@pytest.mark.parametrize("n_samples", [1, 2, 3])
def test_few_draws_have_the_scores_that_they_allow(n_samples: int) -> None:
    probs = torch.rand(n_samples, 5, 2, generator=torch.Generator()).softmax(-1)
    found = scores_of(probs)
    assert list(found) == [name for name in SCORES if name in DRAWN and n_samples >= DRAWN[name].fewest_draws]
    assert ("mutual_information" in found) == (n_samples > 1)
    for name, values in found.items():
        torch.testing.assert_close(values, SCORES[name].values(probs))


def test_leads_are_those_of_the_leader_of_the_mean() -> None:
    probs = torch.tensor([[[0.5, 0.3, 0.2, 0.0]], [[0.3, 0.4, 0.3, 0.0]]])
    torch.testing.assert_close(leads(probs)[:, 0], torch.tensor([[1.0, 0.2, 0.3, 1.0], [1.0, -0.1, 0.0, 1.0]]))


# What is made from it


def test_an_answer_has_every_score() -> None:
    names = {score.name for score in TABLE}
    assert names <= Answer.model_fields.keys()
    assert names <= {field.name for field in fields(Prediction)}
    shares, others = ({s.name for s in TABLE if s.high_is_certain is high} for high in (True, False))
    assert {field.name for field in fields(AbstainBelow)} == shares
    assert {field.name for field in fields(AbstainAbove)} == others


@per_threshold
def test_a_threshold_is_a_policys_a_requests_and_an_answers(score: Score) -> None:
    assert Policy(**{score.threshold: 0.25}).limits() == {score.name: 0.25}
    assert requests.Policy(**{score.threshold: 0.25}).thresholds() == {score.threshold: 0.25}
    shown = PolicyInForce(**{score.threshold: 0.25}, source="request")
    assert shown.model_dump(exclude_none=True) == {score.threshold: 0.25, "source": "request"}
    description = requests.Policy.model_fields[score.threshold].description
    needs = (
        f" Refused without {score.fewest_draws} or more draws that differ."
        if score.name == "mutual_information"
        else ""
    )
    assert description == f"Abstain if {score.failure}.{needs}"


@per_threshold
def test_a_score_is_measured(score: Score) -> None:
    assert f"# HELP {score.metric} {score.meaning}" in ServerMetrics(Build("1", "a")).render().decode()


@pytest.mark.parametrize("name", [name for name in SCORES if name in DRAWN])
def test_a_score_of_the_draws_may_be_planned(name: ScoreName) -> None:
    assert Goal(score=name).ask_in("float32").score == name


def test_a_score_of_the_question_alone_may_not_be_planned() -> None:
    with pytest.raises(ConfigError, match="got score = familiarity, expected"):
        Goal(score="familiarity")


# Values worked out by hand


def test_draws_that_are_sure_and_disagree_are_epistemic_only() -> None:
    probs = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert predictive_mean(probs).tolist() == [[0.5, 0.5]]
    assert predictive_entropy(probs).item() == pytest.approx(LOG_2)
    assert expected_entropy(probs).item() == 0
    assert mutual_information(probs).item() == pytest.approx(LOG_2)


def test_draws_that_agree_are_aleatoric_only() -> None:
    probs = torch.tensor([[[0.25, 0.75]]] * 3, dtype=torch.float64)
    total = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert predictive_entropy(probs).item() == pytest.approx(total)
    assert expected_entropy(probs).item() == pytest.approx(total)
    assert mutual_information(probs).item() == pytest.approx(0, abs=1e-15)


def test_a_mixed_case() -> None:
    probs = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64)
    total = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    aleatoric = (LOG_2 - (0.9 * math.log(0.9) + 0.1 * math.log(0.1))) / 2
    assert mutual_information(probs).item() == pytest.approx(total - aleatoric)


def test_probabilities_are_averaged_and_not_logits() -> None:
    # Averaging logits of (0.99, 0.01) and (0.4, 0.6) would give 0.891.
    probs = torch.tensor([[[0.99, 0.01]], [[0.4, 0.6]]], dtype=torch.float64)
    assert predictive_mean(probs)[0, 0].item() == pytest.approx(0.695)


def test_the_margin_is_that_of_the_mean_and_of_its_two_leading_choices() -> None:
    probs = torch.tensor([[[0.5, 0.1, 0.4]], [[0.3, 0.6, 0.1]]], dtype=torch.float64)  # the mean is 0.4, 0.35, 0.25
    assert SCORES["margin"].of(probs).item() == pytest.approx(0.05)
    two = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64)
    assert SCORES["margin"].of(two).item() == pytest.approx(2 * SCORES["confidence"].of(two).item() - 1)


def test_entropy_is_over_the_last_dimension_and_takes_zeros() -> None:
    probs = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    torch.testing.assert_close(entropy(probs), torch.tensor([[LOG_2, 0.0]]))


# Properties


@given(probs=probabilities())
def test_uncertainties_are_bounded(probs: Tensor) -> None:
    n_choices = (probs > 0).any(0).sum(-1)
    bound = n_choices.double().log() + 1e-12
    total, aleatoric, epistemic = (f(probs) for f in (predictive_entropy, expected_entropy, mutual_information))
    assert (aleatoric >= 0).all()
    assert (epistemic >= -1e-12).all()
    assert (total <= bound).all()
    assert (epistemic <= math.log(probs.shape[0]) + 1e-12).all()  # a draw tells at most its own index
    torch.testing.assert_close(total, aleatoric + epistemic)


@given(probs=probabilities(), seed=st.integers(0, 2**31))
def test_the_order_of_draws_rows_and_choices_changes_nothing(probs: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    s, b, c = (torch.randperm(n, generator=generator) for n in probs.shape)
    for quantity in (predictive_entropy, expected_entropy, mutual_information):
        torch.testing.assert_close(quantity(probs[s][:, b][:, :, c]), quantity(probs)[b])
    torch.testing.assert_close(predictive_mean(probs[s][:, b]), predictive_mean(probs)[b])


@given(probs=probabilities())
def test_repeating_the_draws_changes_nothing(probs: Tensor) -> None:
    for quantity in (predictive_mean, predictive_entropy, expected_entropy, mutual_information):
        torch.testing.assert_close(quantity(probs.repeat(3, 1, 1)), quantity(probs))


def test_a_single_draw_has_no_epistemic_uncertainty() -> None:
    probs = torch.tensor([[[0.2, 0.8]]])
    assert mutual_information(probs).item() == 0


@pytest.mark.parametrize("quantity", [predictive_mean, predictive_entropy, expected_entropy, mutual_information])
@pytest.mark.parametrize("shape", [(3, 2), (0, 3, 2), (2, 2, 3, 2)])
def test_another_shape_is_refused(shape: tuple[int, ...], quantity: object) -> None:
    with pytest.raises(ShapeError, match=r"expected \(S, B, C\) with S >= 1"):
        quantity(torch.ones(shape) / 2)  # type: ignore[operator]
