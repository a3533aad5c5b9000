"""Thresholds lie where a batch does not move a score past them by rounding alone."""

import dataclasses

import pytest
import torch

from blora.decision.calibrate import calibrate
from blora.decision.calibration import VLLM, Goal
from blora.decision.resolution import COARSE, FINE, Resolution, resolution_of
from blora.decision.selective import Evidence, Stage, split_rows
from blora.decision.temperature import temper
from blora.scores import SCORES, ScoreName, scores_of
from tests.blora.decision.test_calibrate import BINDING, PLANNED, SOURCE, answers

LEAST = {"bfloat16": 1e-3, "float16": 1e-3, VLLM: 1e-3, "float32": 1e-4}


@pytest.mark.parametrize("resolution", [COARSE, FINE])
def test_the_next_point_of_the_grid_is_at_most_a_step_looser(resolution: Resolution) -> None:
    values = torch.logspace(-9, 1, 4000, dtype=torch.float64)
    points = resolution.loosen(values)
    assert bool((points >= values * (1 - 1e-6)).all())
    assert points.min() == pytest.approx(resolution.least)
    beyond = values > resolution.least
    assert bool((points[beyond] <= values[beyond] * (1 + resolution.step) * (1 + 1e-6)).all())
    assert torch.equal(resolution.loosen(points), points)
    distinct = points.unique()
    assert bool((distinct[1:] / distinct[:-1] > 1 + resolution.step - 1e-6).all())


@pytest.mark.parametrize("dtype", LEAST)
@pytest.mark.parametrize("score", PLANNED)
def test_no_threshold_is_below_what_rounding_moves(dtype: str, score: ScoreName) -> None:
    log_probs, labels = answers()
    log_probs = 40 * log_probs[:1].expand(5, -1, -1)  # draws that agree, and are as sure as can be
    log_probs = log_probs + 1e-3 * torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(0))
    log_probs[:, -1, 2:] = -torch.inf
    binding = dataclasses.replace(BINDING, dtype=dtype, temperature=1.0, lapse=0.0)
    goal = Goal(target_risk=0.2, score=score)
    for level in calibrate(log_probs.log_softmax(-1), labels, binding=binding, goal=goal, **SOURCE).proved():
        assert level.threshold is not None
        lacking = 1 - level.threshold if SCORES[score].high_is_certain else level.threshold
        assert lacking >= LEAST[dtype] * (1 - 1e-6)


@pytest.mark.parametrize("dtype", LEAST)
def test_thresholds_lie_on_the_grid_and_the_loosest_answers_all_that_tuned(dtype: str) -> None:
    log_probs, labels = answers()
    probs = temper(log_probs, 1.5)
    scores, wrong = scores_of(probs), probs.mean(0).argmax(-1) != labels
    resolution = resolution_of(dtype)
    evidence = Evidence.gather([Stage(scores, wrong)], seed=0, resolution=resolution)
    tuning, _ = split_rows(len(labels), 0)
    for candidates in evidence.candidates:
        values = torch.tensor(candidates.thresholds, dtype=torch.float64)
        lacking = 1 - values if SCORES[candidates.score].high_is_certain else values
        assert bool((lacking[1:-1] / lacking[:-2] > 1 + resolution.step - 1e-6).all())
        assert candidates.tuning[-1].answered == len(tuning)


def test_answers_that_are_all_certain_get_the_tightest_threshold_there_is() -> None:
    certain: dict[ScoreName, torch.Tensor] = {
        "confidence": torch.ones(100),
        "mutual_information": torch.full((100,), 6e-5),
    }
    right = torch.zeros(100, dtype=torch.bool)
    evidence = Evidence.gather([Stage(certain, right)], seed=0, resolution=resolution_of("bfloat16"))
    confidence, information = evidence.candidates
    assert confidence.thresholds == pytest.approx((0.999,))
    assert information.thresholds == pytest.approx((0.001,))


def test_no_threshold_is_looser_than_the_least_certain_row_that_tuned() -> None:
    confidence = torch.logspace(-2.3, 0, 400, dtype=torch.float64)  # as low as among 200 choices
    right = torch.zeros(400, dtype=torch.bool)
    [candidates] = Evidence.gather([Stage({"confidence": confidence}, right)], seed=0, resolution=COARSE).candidates
    tuning, _ = split_rows(400, 0)
    assert candidates.thresholds[-1] == pytest.approx(float(confidence[tuning].min()))
