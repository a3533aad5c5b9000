"""Guesses cost at most their budget, touch far questions alone, and leave the mutual information as it is."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blora.config.head import MOST_GUESSES
from blora.decision.calibrate import calibrate
from blora.decision.calibration import Goal
from blora.decision.guesses import BUDGET, guess_share, modest
from blora.decision.temperature import guessed
from blora.decision.uncertainty import summarize
from blora.scores import SCORES, mutual_information, scores_of
from tests.blora.decision.test_calibrate import BINDING, SOURCE, answers


def drawn(n_draws: int, n_rows: int, n_choices: int, *, seed: int = 0) -> Tensor:
    """Probabilities (S, N, C) whose draws disagree."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n_draws, n_rows, n_choices, generator=generator, dtype=torch.float64)).softmax(-1)


@given(st.integers(1, 2000), st.integers(2, 6), st.integers(0, 99))
def test_the_share_is_the_largest_whose_expected_cost_is_in_the_budget(n: int, n_choices: int, seed: int) -> None:
    probs = drawn(4, 30, n_choices, seed=seed)
    labels = probs.mean(0).argmax(-1)
    share = guess_share(probs, labels, n)

    def cost(share: float) -> float:
        after = guessed(probs.mean(0), share, torch.ones(n_choices))
        picked = (part.gather(1, labels[:, None]).log().mean() for part in (probs.mean(0), after))
        before, later = picked
        return float(before - later) / (n + 1)

    assert 0 < share <= MOST_GUESSES
    assert cost(share) <= BUDGET + 1e-9
    assert share == MOST_GUESSES or cost(share + 1e-3) > BUDGET


def test_a_label_that_was_thought_impossible_and_absent_choices_leave_the_share_finite() -> None:
    probs = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]])
    assert 0 < guess_share(probs, torch.tensor([1, 0]), 50) <= MOST_GUESSES


def test_far_questions_alone_get_guesses_over_their_own_choices() -> None:
    probs = torch.tensor([[[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]])
    found = modest(probs, torch.tensor([0.0, 0.8]))
    torch.testing.assert_close(found, torch.tensor([[[0.9, 0.1, 0.0], [0.58, 0.42, 0.0]]]))
    assert modest(probs, torch.zeros(2)) is probs


def test_guesses_make_every_score_less_certain_but_leave_the_mutual_information() -> None:
    draws = drawn(8, 50, 4)
    probs = modest(draws, torch.full((50,), 0.7))
    before, after = scores_of(draws), scores_of(probs, draws)
    torch.testing.assert_close(after["mutual_information"], before["mutual_information"])
    assert bool((mutual_information(probs) < before["mutual_information"]).all())  # what would look like agreement
    for name in ("confidence", "predictive_entropy", "margin"):
        certainty = SCORES[name].certainty
        assert bool((certainty(after[name]) < certainty(before[name])).all())


def test_an_answer_with_guesses_has_modest_probabilities_and_its_entropies_add_up() -> None:
    draws = drawn(8, 1, 4)[:, 0]
    sure, shy = summarize(draws, 0.001), summarize(draws, 0.001, guesses=0.9)
    assert shy.top == sure.top
    for one, other in zip(shy.probabilities, sure.probabilities, strict=True):
        assert one == pytest.approx(0.1 * other + 0.9 / 4)
    scores, before = shy.scores(), sure.scores()
    assert scores["mutual_information"] == pytest.approx(before["mutual_information"], abs=1e-12)
    assert scores["predictive_entropy"] == pytest.approx(-sum(p * math.log(p) for p in shy.probabilities))
    assert scores["expected_entropy"] + scores["mutual_information"] == pytest.approx(scores["predictive_entropy"])
    assert scores["familiarity"] == 0.001


def test_a_calibration_is_of_answers_with_their_guesses() -> None:
    log_probs, labels = answers(n_draws=1)
    shares = torch.where(torch.arange(800) % 5 == 0, 0.9, 0.0)
    binding = replace(BINDING, n_samples=1, temperature=1.0, lapse=0.0)
    common = {"binding": binding, "goal": Goal(target_risk=0.1, score="confidence"), **SOURCE}
    found = calibrate(log_probs, labels, guesses=shares, **common)
    mixed = modest(log_probs.double().exp(), shares).log()  # with one draw, guesses are like any other probabilities
    for one, other in zip(found.levels, calibrate(mixed, labels, **common).levels, strict=True):
        assert (one.threshold, one.coverage, one.error) == pytest.approx((other.threshold, other.coverage, other.error))
    quantiles = [
        [one.quantile for one in calibration.quantiles] for calibration in (found, calibrate(mixed, labels, **common))
    ]
    assert quantiles[0] == pytest.approx(quantiles[1])
    assert found.default_level.coverage < (calibrate(log_probs, labels, **common).default_level.coverage or 0)
