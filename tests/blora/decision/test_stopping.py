import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blora.decision import calibrate
from blora.decision.abstention import Policy, decide
from blora.decision.binomial import binomial_cdf
from blora.decision.selective import Evidence, Stage, split_rows
from blora.decision.stopping import draws_used, looks, reach, settled
from blora.decision.uncertainty import summarize
from blora.errors import ShapeError
from blora.scores import SCORES, TOLERANCE, scores_of

POLICIES = (
    Policy(min_confidence=0.7),
    Policy(max_predictive_entropy=0.8),
    Policy(max_mutual_information=0.05),
    Policy(min_margin=0.4),
    Policy(min_confidence=0.6, max_predictive_entropy=0.9, max_mutual_information=0.1, min_margin=0.3),
)
EVERY = POLICIES[-1]


def questions(n: int, *, n_samples: int = 16, spread: float = 0.7, seed: int = 0) -> Tensor:
    """(S, N, 3) probabilities whose logits scatter over the draws, from easy questions to hopeless ones."""
    generator = torch.Generator().manual_seed(seed)
    middle = 2 * torch.randn(1, n, 3, generator=generator, dtype=torch.float64)
    scatter = spread * torch.rand(1, n, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(n_samples, n, 3, generator=generator, dtype=torch.float64)
    return (middle + scatter * noise).softmax(-1)


@given(st.integers(1, 300))
def test_looks_rise_by_doubling_and_end_with_all_draws(n_samples: int) -> None:
    taken = looks(n_samples)
    assert taken[-1] == n_samples
    assert all(later == 2 * look for look, later in pairwise(taken[:-1]))
    assert taken == sorted(set(taken))
    assert taken[0] == min(4, n_samples)


def test_after_all_draws_everything_is_settled_and_after_one_nothing() -> None:
    probs = torch.cat([questions(50), torch.full((16, 1, 3), 1 / 3, dtype=torch.float64)], 1)
    assert settled(probs, 16, POLICIES[0], 0.01).all()
    assert not settled(probs[:1], 16, POLICIES[0], 0.01).any()
    assert settled(probs[:1], 1, POLICIES[0], 0.01).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_draws_that_agree_settle_at_once(policy: Policy) -> None:
    probs = questions(40, spread=0.0)
    assert (draws_used(probs, policy, 0.001) == 4).all()


def test_the_nearer_to_the_threshold_the_more_draws() -> None:
    probs = questions(1)
    confidence = float(probs.mean(0).max())
    used = [int(draws_used(probs, Policy(min_confidence=confidence - off), 0.01)) for off in (0.0, 0.02, 0.3)]
    assert used[0] == 16
    assert used == sorted(used, reverse=True)
    assert used[-1] < 16


def test_two_choices_that_may_still_change_places_are_not_settled() -> None:
    even = torch.tensor([[0.48, 0.47, 0.05], [0.46, 0.49, 0.05]]).repeat(2, 1)[:, None]
    policy = Policy(min_confidence=0.9)  # far away: only the lead is open
    assert not settled(even, 16, policy, 0.1).any()
    ahead = even + torch.tensor([0.2, -0.2, 0.0])
    assert settled(ahead, 16, policy, 0.1).all()


def test_one_threshold_that_surely_fails_settles_the_others() -> None:
    probs = questions(1)[:4]
    entropy = float(scores_of(probs)["predictive_entropy"])
    open_ = Policy(max_predictive_entropy=entropy)
    assert not settled(probs, 16, open_, 0.01).any()
    assert settled(probs, 16, Policy(max_predictive_entropy=entropy, min_confidence=1.0), 0.2).all()


def test_one_threshold_that_is_surely_met_does_not_settle_another_that_is_open() -> None:
    probs = questions(100)[:8]
    scores = scores_of(probs)
    met = (scores["confidence"] - 0.01 > reach(probs, 16, 0.05, 2)["confidence"]).nonzero()[:, 0].tolist()
    assert len(met) > 50
    for row in met:
        at_limit = Policy(min_confidence=0.01, max_mutual_information=float(scores["mutual_information"][row]))
        assert not settled(probs[:, row : row + 1], 16, at_limit, 0.05).any()


@pytest.mark.parametrize("policy", POLICIES)
def test_choices_that_a_row_does_not_have_change_nothing(policy: Policy) -> None:
    probs = questions(200)
    wide = torch.cat([probs, torch.zeros(16, 200, 2, dtype=torch.float64)], -1)
    assert torch.equal(draws_used(probs, policy, 0.01), draws_used(wide, policy, 0.01))


def test_a_row_settles_in_company_as_it_does_alone() -> None:
    probs = questions(60)
    together = draws_used(probs, EVERY, 0.01)
    alone = [int(draws_used(probs[:, i : i + 1], EVERY, 0.01)) for i in range(60)]
    assert together.tolist() == alone
    assert len(set(alone)) > 1


def test_the_reach_is_students_t_with_the_finite_population_correction() -> None:
    values = torch.tensor([0.8, 0.7, 0.75, 0.85], dtype=torch.float64)
    probs = torch.stack([values, 1 - values], -1)[:, None]
    # 5 % risked, 2 looks and 2 limits: the quantile of 1 - 0.0125 with 3 degrees of freedom, from a table of t.
    expected = 4.1765 * values.std() / 2 * math.sqrt(1 - 4 / 8)
    assert reach(probs, 8, 0.05)["confidence"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_both_entropies_may_also_rise_by_the_bias_of_few_draws() -> None:
    first = torch.tensor([0.8, 0.7, 0.75, 0.85], dtype=torch.float64)
    probs = torch.stack([first, 1 - first], -1)[:, None]
    found, mean = reach(probs, 16, 0.1), probs.mean(0)
    width = found["confidence"].item() / first.std().item()
    cross_entropies = -(probs * mean.log()).sum(-1)[:, 0]
    divergences = (probs * (probs / mean).log()).sum(-1)[:, 0]
    rise = divergences.mean().item() / (4 - 1) * (1 - 4 / 16)
    assert found["predictive_entropy"].item() == pytest.approx(width * cross_entropies.std().item() + rise)
    assert found["mutual_information"].item() == pytest.approx(width * divergences.std().item() + rise)


def test_a_margin_may_fall_by_what_any_other_choice_may_gain_and_not_the_second_alone() -> None:
    third = torch.tensor([0.1, 0.2, 0.1, 0.2], dtype=torch.float64)  # on average 0.15, behind a steady 0.2
    probs = torch.stack([0.8 - third, torch.full_like(third, 0.2), third], -1)[:, None]
    assert SCORES["margin"].of(probs).item() == pytest.approx(0.45)
    found = reach(probs, 16, 0.1)
    width = found["confidence"].item() / third.std().item()  # the leader scatters as the third choice does
    lead_of_second, lead_of_third = width * third.std().item(), width * 2 * third.std().item()
    assert lead_of_third - 0.05 > lead_of_second
    assert found["margin"].item() == pytest.approx(lead_of_third - 0.05)


def test_no_margin_of_all_draws_leaves_the_reach_more_often_than_stated() -> None:
    n, error = 4000, 0.1
    probs = questions(n, spread=1.0, seed=5)
    few, every = (SCORES["margin"].of(draws) for draws in (probs[:8], probs))
    left = ((every - few).abs() > reach(probs[:8], 16, error)["margin"]).sum()
    assert binomial_cdf(int(left) - 1, n, error) < 0.999


def test_the_entropy_of_few_draws_is_as_much_too_low_as_the_reach_allows_for() -> None:
    probs = questions(3000, spread=0.5)
    of_few, of_all = (scores_of(draws)["mutual_information"] for draws in (probs[:4], probs))
    assert ((of_few / 3 * (1 - 4 / 16)).mean() / (of_all - of_few).mean()).item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("error", [0.01, 0.1])
def test_early_decisions_differ_from_full_ones_as_rarely_as_stated_and_take_fewer_draws(
    policy: Policy, error: float
) -> None:
    n = 1000
    probs = questions(n, spread=1.0, seed=3)
    used = draws_used(probs, policy, error)
    differ = 0
    for row in range(n):
        early, full = (summarize(probs[:s, row]) for s in (int(used[row]), 16))
        differ += (early.top, decide(early, policy).abstained) != (full.top, decide(full, policy).abstained)
    # Of the mutual information, a sum of squares, twice as many.
    stated = error if policy.max_mutual_information is None else 2 * error
    assert binomial_cdf(differ - 1, n, stated) < 0.999
    assert used.double().mean() < 11.5


@pytest.mark.parametrize("shape", [(4, 3), (17, 1, 3), (0, 1, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected \\(s, N, C\\) with s from 1 to 16"):
        settled(torch.rand(shape), 16, POLICIES[0], 0.1)


def test_at_the_last_look_every_question_is_decided_even_between_equal_choices() -> None:
    probs = torch.cat([questions(5), torch.full((16, 1, 3), 1 / 3, dtype=torch.float64)], 1)
    *early, last = calibrate._stages(probs, probs, torch.zeros(6, dtype=torch.long), 0.1, "confidence")
    assert [stage.reach["confidence"][-1] for stage in early] == [torch.inf, torch.inf]
    assert last.reach == {}


def test_early_answers_are_counted_as_each_threshold_has_them_go_out() -> None:
    generator = torch.Generator().manual_seed(1)
    *scores, reach = torch.rand(4, 60, generator=generator, dtype=torch.float64)
    reach = 0.4 * reach
    reach[:5] = torch.inf
    wrong = torch.rand(3, 60, generator=generator) < 0.3
    stages = [
        Stage({"confidence": scores[0]}, wrong[0], {"confidence": reach}),
        Stage({"confidence": scores[1]}, wrong[1], {"confidence": reach / 2}),
        Stage({"confidence": scores[2]}, wrong[2]),
    ]
    labels = torch.randint(3, (60,), generator=generator)
    right = torch.nn.functional.one_hot(labels, 3)
    [candidates] = Evidence.gather(stages, seed=0, right=right).candidates
    for part, counted in zip(split_rows(60, 0), (candidates.tuning, candidates.proof), strict=True):
        for threshold, counts in zip(candidates.thresholds, counted, strict=True):
            answered, missed = 0, [0, 0, 0]
            for row in part.tolist():
                left = (abs(score[row] - threshold) > reach[row] / 2**k for k, score in enumerate(scores[:2]))
                stage = next((k for k, decided in enumerate(left) if decided), 2)
                out = bool(scores[stage][row] >= threshold - TOLERANCE)
                answered += out
                missed[labels[row]] += out and bool(wrong[stage, row])
            assert counts == (answered, sum(missed), tuple(missed))
