import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from blora.decision.abstention import decide
from blora.decision.calibrated import Binding, Calibration, Goal, calibrate, scores_of
from blora.decision.calibration import ece, temper
from blora.decision.conformal import conformal_quantile, nonconformity
from blora.decision.histogram import Histogram, entropy_histogram
from blora.decision.selective import split_rows
from blora.decision.uncertainty import predictive_mean, summarize
from blora.errors import ConfigError, NumericalError, ShapeError

DIGEST = "sha256:" + "a" * 64
BINDING = Binding(
    adapter_digest=DIGEST, dtype="bfloat16", n_samples=5, seed=3, scoring="text", temperature=1.5
)  # fmt: skip
SOURCE: dict[str, str] = {"source": "held_out.jsonl", "digest": "sha256:" + "b" * 64, "split": "test"}


def answers(n: int = 800, *, n_draws: int = 5, n_choices: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (S, N, C) that are mostly right, and the less sure the less so; the last row has one less."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_choices, (n,), generator=generator)
    sharp = 6 * torch.rand(n, 1, generator=generator)
    logits = torch.randn(n, n_choices, generator=generator) + sharp * torch.nn.functional.one_hot(labels, n_choices)
    draws = logits + 0.3 * torch.randn(n_draws, n, n_choices, generator=generator)
    labels[-1] = 0
    draws[:, -1, -1] = -torch.inf
    return draws.log_softmax(-1), labels


def made(goal: Goal | None = None, binding: Binding = BINDING, **shape: int) -> Calibration:
    log_probs, labels = answers(**shape)
    return calibrate(log_probs, labels, binding=binding, goal=goal or Goal(), **SOURCE)


def test_a_calibration_says_what_it_is_for_and_of() -> None:
    calibration = made(Goal(target_risk=0.07, delta=0.1, coverage=0.85, seed=4))
    assert calibration.binding == BINDING
    rows = calibration.rows
    assert (rows.source, rows.digest, rows.split) == tuple(SOURCE.values())
    assert (rows.n_rows, rows.n_tuning, rows.n_proof, rows.seed) == (800, 200, 600, 4)
    assert [level.target_risk for level in calibration.levels] == [0.01, 0.02, 0.05, 0.07, 0.1, 0.2]
    assert [quantile.coverage for quantile in calibration.quantiles] == [0.8, 0.85, 0.9, 0.95]
    assert (calibration.delta, calibration.target_risk, calibration.coverage) == (0.1, 0.07, 0.85)
    assert calibration.default_level.target_risk == 0.07
    assert calibration.quantile == calibration.quantiles[1].quantile


def test_a_looser_target_answers_more_and_each_keeps_its_own() -> None:
    proved = made().proved()
    assert len(proved) >= 3
    coverages = [level.coverage for level in proved]
    assert coverages == sorted(coverages)  # type: ignore[type-var]
    for level in proved:
        assert level.error is not None
        assert level.error < level.target_risk


def test_a_target_that_is_not_the_default_may_go_unproved() -> None:
    calibration = made(Goal(target_risk=0.2), n=100)
    assert calibration.levels[0].threshold is None
    assert calibration.level(0.01) is None
    assert calibration.level(0.2) == calibration.default_level
    assert calibration.level(0.123) is None


def test_the_temperature_is_applied_and_the_threshold_is_in_the_units_of_an_answer() -> None:
    log_probs, labels = answers()
    calibration = made()
    policy = calibration.default_level.policy()
    probs = temper(log_probs, BINDING.temperature)
    _, proof = split_rows(800, 0)
    predictions = [summarize(probs[:, row]) for row in proof.tolist()]
    kept = [not decide(prediction, policy).abstained for prediction in predictions]
    wrong = [p.top != int(labels[row]) for p, row in zip(predictions, proof.tolist(), strict=True)]
    level = calibration.default_level
    assert level.coverage == pytest.approx(sum(kept) / len(kept))
    assert level.error == pytest.approx(sum(w for w, k in zip(wrong, kept, strict=True) if k) / sum(kept))


def test_quantiles_come_from_the_proof_part_alone() -> None:
    log_probs, labels = answers()
    mean = predictive_mean(temper(log_probs, BINDING.temperature))
    _, proof = split_rows(800, 0)
    scores = nonconformity(mean[proof], labels[proof])
    for quantile in made().quantiles:
        assert quantile.quantile == conformal_quantile(scores, quantile.coverage)


def test_a_coverage_that_is_not_the_default_may_have_too_few_rows() -> None:
    calibration = made(Goal(target_risk=0.5, delta=0.5, coverage=0.7), n=16)
    assert [quantile.quantile is None for quantile in calibration.quantiles] == [False, False, False, True]


def test_the_pictures_are_of_all_rows() -> None:
    calibration = made()
    log_probs, labels = answers()
    probs = temper(log_probs, BINDING.temperature)
    mean = predictive_mean(probs)
    bins = [row for row in calibration.reliability if row.count]
    gap = sum(row.count * abs((row.accuracy or 0) - (row.confidence or 0)) for row in bins) / 800
    assert gap == pytest.approx(ece(mean, labels))
    assert len(calibration.curve) == 100
    assert calibration.curve[-1] == (1.0, pytest.approx(float((mean.argmax(-1) != labels).double().mean())))
    assert sum(calibration.entropy.counts) == 800
    assert calibration.entropy.edges[-1] == pytest.approx(math.log(3))


def test_a_single_draw_has_no_mutual_information_to_choose() -> None:
    assert "mutual_information" not in scores_of(torch.rand(1, 5, 2, generator=torch.Generator()))
    assert "mutual_information" in scores_of(torch.rand(2, 5, 2, generator=torch.Generator()))
    assert made(n_draws=1).default_level.score != "mutual_information"


def test_two_choices_are_enough() -> None:
    assert made(n_choices=2).default_level.coverage


def test_an_impossible_target_names_the_best_possible_one() -> None:
    with pytest.raises(ConfigError, match=r"got target_risk 0.005, which these 800 rows do not prove") as info:
        made(Goal(target_risk=0.005))
    best = float(str(info.value).partition("at least ")[2].partition(",")[0])
    assert 0.005 < best < 0.05
    assert made(Goal(target_risk=best)).default_level.threshold is not None


def test_where_every_answer_is_wrong_no_target_is_possible() -> None:
    log_probs, _ = answers()
    wrong = predictive_mean(temper(log_probs, 1.5)).argmin(-1)
    with pytest.raises(ConfigError, match="they prove no target at all"):
        calibrate(log_probs, wrong, binding=BINDING, goal=Goal(), **SOURCE)


@pytest.mark.parametrize(
    ("n", "goal", "message"),
    [
        (77, Goal(), "got 77 rows for target_risk 0.05 at delta 0.05, expected at least 78"),
        (1, Goal(target_risk=0.9), "got 1 rows for target_risk 0.9"),
        (24, Goal(target_risk=0.5, coverage=0.95), "got 24 rows for coverage 0.95, expected at least 25"),
    ],
)
def test_too_few_rows_are_told_with_the_number_needed(n: int, goal: Goal, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(goal, n=n)


@pytest.mark.parametrize(
    "goal",
    [
        {"target_risk": 0.0}, {"target_risk": 1.0}, {"target_risk": math.nan}, {"delta": 0.0}, {"delta": 0.6},
        {"coverage": 1.0}, {"coverage": -1.0}, {"seed": -1},
    ],
)  # fmt: skip
def test_goals_that_make_no_sense_are_refused(goal: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(goal))):
        Goal(**goal)


def test_a_probability_that_is_not_finite_is_refused() -> None:
    log_probs, labels = answers()
    log_probs[0, 7] = torch.nan
    with pytest.raises(NumericalError, match="score in float32"):
        calibrate(log_probs, labels, binding=BINDING, goal=Goal(), **SOURCE)


def test_shapes_that_do_not_fit_are_refused() -> None:
    log_probs, labels = answers()
    with pytest.raises(ShapeError, match=r"expected \(S, N, C\) and \(N,\)"):
        calibrate(log_probs, labels[1:], binding=BINDING, goal=Goal(), **SOURCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0.0}, "delta"),
        ({"target_risk": 0.03}, "default target_risk = 0.03, expected that of a proved level"),
        ({"coverage": 0.5}, "default coverage = 0.5"),
        ({"levels": ()}, "default target_risk"),
        ({"reliability": ()}, "0 reliability bins, expected 15"),
        ({"curve": ()}, "0 curve points"),
        ({"curve": ((1.0, 1.5),)}, "out of range"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(made(), **change)


def test_levels_stand_in_order() -> None:
    calibration = made()
    with pytest.raises(ConfigError, match="distinct ones in rising order"):
        dataclasses.replace(calibration, levels=calibration.levels[::-1])


@pytest.mark.parametrize(
    "change",
    [{"adapter_digest": "a" * 64}, {"dtype": ""}, {"n_samples": 0}, {"seed": -1}, {"temperature": 0.0}],
)
def test_a_binding_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="got"):
        dataclasses.replace(BINDING, **change)


# The histogram


def test_every_entropy_is_counted_and_the_extremes_lie_in_the_outer_bins() -> None:
    entropies = torch.tensor([0.0, 0.0, math.log(4), math.log(4) + 1e-12, math.log(4) / 2 + 1e-6])
    histogram = entropy_histogram(entropies, 4)
    assert len(histogram.counts) == 20
    assert (histogram.counts[0], histogram.counts[10], histogram.counts[19]) == (2, 1, 2)
    assert sum(histogram.counts) == 5


@pytest.mark.parametrize(
    ("edges", "counts", "message"),
    [((0.0, 1.0), (1, 2), "2 edges of 2 counts"), ((0.0, 0.0), (1,), "ascending"), ((0.0, 1.0), (-1,), "none below 0")],
)
def test_a_histogram_that_cannot_be_is_refused(edges: Any, counts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Histogram(edges=edges, counts=counts)
