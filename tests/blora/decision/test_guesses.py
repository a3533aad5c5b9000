"""Guesses cost at most their budget, touch far questions alone, and leave the mutual information as it is."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Distribution, Exponential, LogNormal, Normal

from blora.decision.calibrate import calibrate
from blora.decision.calibration import Goal
from blora.decision.guesses import BUDGET, SHARE, beginning_of_guesses, modest
from blora.decision.temperature import guessed
from blora.decision.uncertainty import summarize
from blora.scores import SCORES, mutual_information, scores_of
from tests.blora.decision.test_calibrate import BINDING, SOURCE, answers


def drawn(n_draws: int, n_rows: int, n_choices: int, *, seed: int = 0) -> Tensor:
    """Probabilities (S, N, C) whose draws disagree."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n_draws, n_rows, n_choices, generator=generator, dtype=torch.float64)).softmax(-1)


@given(st.integers(20, 3000), st.integers(2, 6), st.integers(0, 99))
def test_guesses_begin_where_the_predictive_tail_leaves_them_their_budget(n: int, n_choices: int, seed: int) -> None:
    probs = drawn(4, 30, n_choices, seed=seed)
    labels = probs.mean(0).argmax(-1)
    reference = -torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log()  # mean 1
    begin = beginning_of_guesses(reference, probs, labels)
    assert beginning_of_guesses(reference, torch.nn.functional.pad(probs, (0, 2)), labels) == begin
    after = guessed(probs.mean(0), SHARE, torch.ones(n_choices))
    before, later = (float(part.gather(1, labels[:, None]).log().mean()) for part in (probs.mean(0), after))
    farthest, k = float(reference.max()), n // 20
    excess = float((reference.sort().values[-k:] - reference.sort().values[-k - 1]).mean())
    cost = (before - later) / (n + 1)
    assert begin is not None
    assert begin >= farthest
    if begin > farthest:
        assert cost * (1 + (begin - farthest) / (k * excess)) ** -k == pytest.approx(BUDGET)
    else:
        assert cost <= BUDGET


@pytest.mark.parametrize("n", [1, 2, 10, 20, 50, 200])
@pytest.mark.parametrize("distances", [Normal(0.0, 1.0), Exponential(1.0), LogNormal(0.0, 1.0)], ids=str)
def test_of_familiar_questions_guesses_cost_about_the_budget_or_there_are_none(distances: Distribution, n: int) -> None:
    generator, beyond = torch.Generator().manual_seed(0), []
    everything = drawn(2, 20_000, 4)
    right = torch.multinomial(everything.mean(0), 1, generator=generator)
    lost = (everything.mean(0) / guessed(everything.mean(0), SHARE, torch.ones(4))).gather(1, right).log().mean()
    for _ in range(500):
        some = torch.randint(20_000, (n,), generator=generator)
        reference = distances.icdf(torch.rand(n, generator=generator))
        begin = beginning_of_guesses(reference, everything[:, some], right[some, 0])
        beyond.append(float(1 - distances.cdf(torch.tensor(begin))) if begin is not None else 0.0)
    cost = float(lost) * sum(beyond) / len(beyond)
    assert 0.2 * BUDGET < cost < 5 * BUDGET if n >= 20 else cost == 0


def test_rows_about_one_text_tell_as_much_as_one_of_them() -> None:
    probs = drawn(4, 30, 4)
    labels = probs.mean(0).argmax(-1)
    reference = -torch.rand(60, generator=torch.Generator().manual_seed(0)).log()
    alone = beginning_of_guesses(reference, probs, labels)
    assert beginning_of_guesses(reference.repeat(5), probs, labels, 5.0) == alone
    nearer = beginning_of_guesses(reference.repeat(5), probs, labels)
    assert alone is not None
    assert nearer is not None
    assert nearer < alone
    assert beginning_of_guesses(reference[:19].repeat(5), probs, labels, 5.0) is None


def test_a_label_that_was_thought_impossible_and_rows_at_one_distance_leave_it_finite() -> None:
    probs = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]])
    assert beginning_of_guesses(torch.ones(27), probs, torch.tensor([1, 0])) == 1
    assert beginning_of_guesses(torch.ones(20), probs, torch.tensor([0, 0])) == 1


def test_one_label_that_was_thought_impossible_does_not_decide_where_guesses_begin() -> None:
    reference = torch.arange(100.0) / 10
    probs = torch.tensor([[[0.9, 0.1]]]).repeat(1, 1000, 1)
    labels = torch.zeros(1000, dtype=torch.long)
    without = beginning_of_guesses(reference, probs, labels)
    probs[:, 0] = torch.tensor([0.0, 1.0])
    found = beginning_of_guesses(reference, probs, labels)
    assert without is not None
    assert found == pytest.approx(without, rel=0.01)
    assert without > float(reference.max()) + 0.5


def test_far_questions_alone_get_guesses_over_their_own_choices() -> None:
    probs = torch.tensor([[[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]]])
    present = torch.tensor([[True, True, False]] * 2)
    found = modest(probs, torch.tensor([0.0, 0.8]), present)
    torch.testing.assert_close(found, torch.tensor([[[0.9, 0.1, 0.0], [0.58, 0.42, 0.0]]]))
    assert modest(probs, torch.zeros(2), present) is probs


def test_guesses_make_every_score_less_certain_but_leave_the_mutual_information() -> None:
    draws = drawn(8, 50, 4)
    probs = modest(draws, torch.full((50,), 0.7), torch.ones(50, 4))
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
    assert shy.std == sure.std
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
    mixed = modest(
        log_probs.double().exp(), shares, ~log_probs.isneginf()[0]
    ).log()  # with one draw, guesses are like any other probabilities
    for one, other in zip(found.levels, calibrate(mixed, labels, **common).levels, strict=True):
        assert (one.threshold, one.coverage, one.error) == pytest.approx((other.threshold, other.coverage, other.error))
    quantiles = [
        [one.quantile for one in calibration.quantiles] for calibration in (found, calibrate(mixed, labels, **common))
    ]
    assert quantiles[0] == pytest.approx(quantiles[1])
    assert found.default_level.coverage < (calibrate(log_probs, labels, **common).default_level.coverage or 0)


def test_a_choice_that_some_draw_rules_out_gets_its_part_of_the_guesses() -> None:
    log_probs, labels = answers(n_draws=2)
    common = {"binding": replace(BINDING, n_samples=2), "goal": Goal(target_risk=0.2), **SOURCE}
    shares = torch.where(torch.arange(800) % 5 == 0, 0.9, 0.0)
    other = (labels + 1) % 3
    found = []
    for ruled_out in (-math.inf, -1e4):  # of probability 0 either way
        log_probs[0, torch.arange(799), other[:-1]] = ruled_out
        found.append(calibrate(log_probs.log_softmax(-1), labels, guesses=shares, **common))
    assert found[0] == found[1]


@pytest.mark.parametrize("present", [torch.ones(3), torch.ones(3, dtype=torch.bool)], ids=["numbers", "a mask"])
def test_probabilities_with_guesses_add_up_to_one_in_float64(present: Tensor) -> None:
    for share in (0.1, 1 / 3, 0.7):
        total = guessed(drawn(4, 30, 3), share, present).sum(-1)
        assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-15)
