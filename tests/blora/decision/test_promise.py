"""The test against its definition by numerical integration, and how often it cries wolf."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import beta

from blora.decision.promise import ALPHA, Promise
from blora.errors import ConfigError


def outcomes(n: int, risk: float, seed: int) -> list[bool]:
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < risk).tolist()


def after(promise: Promise, wrong: list[bool]) -> Promise:
    for each in wrong:
        promise.observe(promise.n_outcomes + 1, promise.n_wrong + each, promise.n_cleared)
    return promise


@pytest.mark.parametrize(("n_wrong", "n_right"), [(0, 5), (3, 4), (9, 30), (20, 5)])
def test_it_is_the_mean_likelihood_ratio_over_the_prior_beyond_the_target(n_wrong: int, n_right: int) -> None:
    r = 0.2

    def ratio(theta: float) -> float:
        return float((theta / r) ** n_wrong * ((1 - theta) / (1 - r)) ** n_right * beta.pdf(theta, 0.5, 0.5))

    evidence = quad(ratio, r, 1, limit=200)[0] / beta.sf(r, 0.5, 0.5)
    promise = Promise(r)
    promise.observe(n_wrong + n_right, n_wrong, 0)
    assert promise._log_mixture(r) == pytest.approx(math.log(evidence), abs=1e-3)


def test_it_rejects_once_the_ratio_reaches_one_in_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    promise = Promise(0.2)
    for factor, expected in ((0.999, False), (1.001, True)):
        monkeypatch.setattr(promise, "_log_mixture", lambda risk, factor=factor: math.log(factor / ALPHA))
        assert promise._rejected(0.2) == expected


def test_a_kept_promise_is_called_broken_in_at_most_a_share_alpha_of_runs_however_often_it_is_looked_at() -> None:
    n_runs = 300
    broken = sum(after(Promise(0.1), outcomes(1000, 0.1, seed)).broken for seed in range(n_runs))
    assert broken <= ALPHA * n_runs + 2 * math.sqrt(ALPHA * (1 - ALPHA) * n_runs)


def test_a_promise_more_than_kept_stays_unbroken_for_twenty_thousand_outcomes() -> None:
    assert not after(Promise(0.1), outcomes(20_000, 0.09, 0)).broken


def test_what_is_far_from_broken_is_not_called_so_where_float_precision_ends() -> None:
    promise = Promise(0.1)
    for n_outcomes in (1000, 10_000, 100_000, 10_000_000):
        promise.observe(n_outcomes, n_outcomes // 100, 0)
        assert not promise.broken
        assert promise.lower_bound <= 0.01
    assert promise.lower_bound == pytest.approx(0.01, rel=0.02)


def test_where_mostly_complaints_are_reported_a_kept_promise_is_called_broken() -> None:
    reported = [w for w, u in zip(outcomes(1000, 0.03, 0), outcomes(1000, 0.1, 1), strict=True) if w or u]
    assert after(Promise(0.05), reported).broken


@pytest.mark.parametrize(("risk", "within"), [(0.2, 400), (0.3, 120), (0.5, 40)])
def test_a_broken_one_is_noticed(risk: float, within: int) -> None:
    noticed = [after(Promise(0.1), outcomes(within, risk, seed)).broken for seed in range(20)]
    assert sum(noticed) >= 19


def test_what_was_broken_stays_broken() -> None:
    promise = after(Promise(0.1), [True] * 10)
    assert promise.broken
    assert after(promise, [False] * 1000).broken


def test_what_was_broken_by_an_answer_that_was_right_after_all_is_judged_anew() -> None:
    promise = after(Promise(0.1), [True] * 3)
    assert promise.broken
    promise.observe(3, 2, 1)
    assert not promise.broken
    promise.observe(4, 3, 1)
    assert promise.broken
    promise.observe(1000, 999, 2)
    assert promise.broken


def test_counts_that_were_lost_are_no_correction() -> None:
    promise = Promise(0.1)
    promise.observe(1000, 999, 2)
    assert promise.broken
    promise.observe(10, 0, 0)
    assert promise.broken


def test_a_promise_that_was_mended_stays_kept_if_its_counts_are_lost() -> None:
    promise = Promise(0.1)
    promise.observe(1000, 999, 2)
    promise.observe(1000, 99, 3)
    assert not promise.broken
    promise.observe(1, 0, 0)
    assert not promise.broken


def test_what_another_process_called_broken_is_broken_until_a_correction() -> None:
    promise = Promise(0.1)
    promise.observe(1000, 100, 2, rejected_at=1)
    assert not promise.broken
    promise.observe(1000, 100, 2, rejected_at=2)
    assert (promise.broken, promise.rejected_at) == (True, 2)
    promise.observe(1000, 99, 3, rejected_at=2)
    assert not promise.broken


def test_a_correction_drops_what_another_process_called_broken_before_the_counts_were_lost() -> None:
    promise = Promise(0.1)
    promise.observe(10, 1, 0, rejected_at=5)
    assert promise.broken
    promise.observe(10, 0, 1)
    assert not promise.broken


def test_a_kept_promise_is_not_called_broken_more_often_where_reports_are_corrected() -> None:
    """Each outcome is first reported wrong with probability 0.3 whatever it was, and corrected before the next ten."""
    n_runs = 200
    broken = 0
    for seed in range(n_runs):
        promise, truth = Promise(0.1), outcomes(500, 0.1, seed)
        mistaken = outcomes(500, 0.3, 10_000 + seed)
        n_cleared = 0
        for end in range(10, 501, 10):
            reported = sum(truth[: end - 10]) + sum(
                w or m for w, m in zip(truth[end - 10 : end], mistaken[end - 10 : end], strict=True)
            )
            promise.observe(end, reported, n_cleared)
            n_cleared += reported - sum(truth[:end])
            promise.observe(end, sum(truth[:end]), n_cleared)
        broken += promise.broken
    assert broken <= ALPHA * n_runs + 2 * math.sqrt(ALPHA * (1 - ALPHA) * n_runs)


def test_the_lower_bound_lies_below_the_true_risk_and_nears_it() -> None:
    promise = Promise(0.1)
    assert (promise.realised_risk, promise.lower_bound) == (None, 0.0)
    bounds = []
    for wrong in outcomes(5000, 0.3, 1):
        after(promise, [wrong])
        if promise.n_outcomes % 500 == 0:
            bounds.append(promise.lower_bound)
    assert max(bounds) < 0.3
    assert bounds[-1] > 0.26
    assert promise.lower_bound < (promise.realised_risk or 0)


@pytest.mark.parametrize("target_risk", [0.0, 1.0])
def test_a_promise_is_a_probability(target_risk: float) -> None:
    with pytest.raises(ConfigError, match="a number between 0 and 1"):
        Promise(target_risk)
