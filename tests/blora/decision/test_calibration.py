"""A calibration as a record, and the goals that may be asked for."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from blora.decision.asks import Ask
from blora.decision.calibration import Goal
from blora.errors import ConfigError
from tests.blora.decision.test_calibrate import made

CALIBRATION = made()
ROWS = CALIBRATION.rows


@pytest.mark.parametrize(
    "goal",
    [
        {"target_risk": 0.0}, {"target_risk": 1.0}, {"target_risk": math.nan}, {"delta": 0.0}, {"delta": 0.6},
        {"coverage": 1.0}, {"coverage": 0.0}, {"seed": -1}, {"seed": 1.0}, {"seed": True}, {"seed": "1"},
        {"target_risk": "0.1"}, {"delta": True}, {"coverage": None}, {"max_false_alarms": True},
    ],
)  # fmt: skip
def test_goals_that_make_no_sense_are_refused(goal: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(goal))):
        Goal(**goal)


@pytest.mark.parametrize("score", ["expected_entropy", "familiarity", "luck"])
def test_a_score_without_a_threshold_of_its_own_is_refused_and_the_others_are_named(score: str) -> None:
    others = "confidence, predictive_entropy, mutual_information, margin"
    with pytest.raises(ConfigError, match=f"got score = {score}, expected one of {others}$"):
        Goal(score=score)


def test_numbers_of_other_libraries_become_pythons_own() -> None:
    given: Any = {"seed": np.int64(3), "delta": np.float32(0.25), "target_risk": np.float64(0.5), "max_false_alarms": 1}
    goal = Goal(**given)
    assert goal == Goal(seed=3, delta=0.25, target_risk=0.5, max_false_alarms=1.0)
    assert {type(value) for value in (goal.delta, goal.target_risk, goal.max_false_alarms)} == {float}
    assert type(goal.seed) is int


def test_as_many_rows_of_each_choice_as_its_limit_needs_are_enough() -> None:
    goal, needed = Goal(max_missed=0.05), 59
    goal.check_choices(("a", "b"), torch.tensor([0, 1] * needed))
    with pytest.raises(ConfigError, match=f"got {needed - 1} rows of the choice 'b' .* at least {needed} of each"):
        goal.check_choices(("a", "b"), torch.tensor([0, 1] * (needed - 1) + [0]))


def ask(target_risk: float, delta: float = 0.05, seed: int = 0) -> Ask:
    return Ask(target_risk=target_risk, delta=delta, seed=seed, dtype="bfloat16")


def test_earlier_asks_add_to_delta_and_the_levels_are_proved_at_their_own() -> None:
    assert CALIBRATION.asks == (ask(0.05),)
    third = dataclasses.replace(CALIBRATION, delta=0.15, asks=(ask(0.01), ask(0.02), ask(0.05)))
    assert third.levels == CALIBRATION.levels
    limited = dataclasses.replace(ask(0.05), max_missed=0.2)
    assert dataclasses.replace(third, asks=(*third.asks[:2], limited)).max_missed == 0.2


@pytest.mark.parametrize(
    "change",
    [
        {"target_risk": 0.03}, {"levels": ()}, {"coverage": 0.5}, {"quantiles": ()},
        {"quantiles": tuple(dataclasses.replace(one, quantile=None) for one in CALIBRATION.quantiles)},
    ],
    ids=["target", "levels", "coverage", "quantiles", "too few rows for a quantile"],
)  # fmt: skip
def test_a_calibration_without_its_default_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="default (target_risk|coverage) = 0.*, expected the (target|coverage) of a"):
        dataclasses.replace(CALIBRATION, **change)


def test_the_number_of_choices_is_told_in_words() -> None:
    assert ROWS.n_choices == "2 to 3"
    assert dataclasses.replace(ROWS, fewest_choices=3).n_choices == "3"
