"""A calibration that cannot have been made is refused, whoever wrote it."""

import dataclasses
import math
from typing import Any

import pytest

from blora.decision.asks import Ask
from blora.decision.calibration import MAX_LEVELS, MAX_ROWS, ConformalQuantile, Goal
from blora.decision.curves import ReliabilityBin
from blora.decision.histogram import Histogram
from blora.decision.selective import Level
from blora.errors import ConfigError
from tests.blora.test_calibrate import BINDING, made

CALIBRATION = made()
ROWS = CALIBRATION.rows
EMPTY = ReliabilityBin(0, None, None)


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


def ask(target_risk: float, delta: float = 0.05, seed: int = 0) -> Ask:
    return Ask(target_risk=target_risk, delta=delta, seed=seed)


def test_earlier_asks_add_to_delta_and_the_levels_are_proved_at_their_own() -> None:
    assert CALIBRATION.asks == (ask(0.05),)
    third = dataclasses.replace(CALIBRATION, delta=0.15, asks=(ask(0.01), ask(0.02), ask(0.05)))
    assert third.levels == CALIBRATION.levels


def levels(default: dict[str, Any], **all_of_them: Any) -> tuple[Level, ...]:
    """The levels, with changes of the one that is the default policy, or of all."""
    return tuple(
        dataclasses.replace(level, **all_of_them, **(default if level == CALIBRATION.default_level else {}))
        for level in CALIBRATION.levels
    )


def quantiles(*numbers: float | None) -> tuple[ConformalQuantile, ...]:
    return tuple(
        ConformalQuantile(coverage=coverage, quantile=number)
        for coverage, number in zip((0.8, 0.9, 0.95), numbers, strict=True)
    )


def bins(**changed: ReliabilityBin) -> tuple[ReliabilityBin, ...]:
    """Those of the calibration with others in some places, as in at14."""
    new = {int(place.removeprefix("at")): row for place, row in changed.items()}
    return tuple(new.get(index, row) for index, row in enumerate(CALIBRATION.reliability))


LAST = CALIBRATION.reliability[14]
SPOILT: dict[str, tuple[dict[str, Any], str]] = {
    "delta": ({"delta": 0.0}, r"delta = 0.0, expected 0.05, the sum over all asks"),
    "an ask that is left out of delta": ({"asks": (ask(0.01), ask(0.05))}, "delta = 0.05, expected 0.1, the sum over"),
    "asks that use up the rows": ({"delta": 1.0, "asks": (ask(0.05),) * 20}, "20 asks of the same rows with a delta of 1 "),
    "asks without its own": ({"asks": (ask(0.01),)}, "a last ask for target_risk 0.01 with seed 0, expected .* for 0.05"),
    "an ask with another seed": ({"asks": (ask(0.05, seed=1),)}, "for target_risk 0.05 with seed 1, expected"),
    "levels proved at the delta of all asks": (
        {"delta": 0.051, "asks": (ask(0.01), ask(0.05, delta=0.001))}, "expected at most delta"
    ),
    "an unproved default": ({"target_risk": 0.03, "asks": (ask(0.03),)}, "default target_risk = 0.03, expected that of a proved level"),
    "a coverage without a quantile": ({"coverage": 0.5}, "default coverage = 0.5"),
    "no levels": ({"levels": ()}, "default target_risk"),
    "levels out of order": ({"levels": CALIBRATION.levels[::-1]}, "distinct ones in rising order"),
    "too many levels": ({"levels": CALIBRATION.levels * 30}, f"150 levels, expected at most {MAX_LEVELS}"),
    "wrong answers without a bound": ({"levels": levels({"error": 1.0, "upper_bound": 0.0})}, "have p-value 1, expected"),
    "a bound of its own": ({"levels": levels({"upper_bound": 0.0})}, r"upper_bound = 0.0 for target_risk 0.05"),
    "a threshold that answers nothing": ({"levels": levels({"coverage": 0.0})}, "coverage = 0.0 .* at least one of 600"),
    "a share of no rows": ({"levels": levels({"coverage": 0.50001})}, "coverage = 0.50001 .* of 600 rows"),
    "confidence from 0 on": ({"levels": levels({"score": "confidence", "threshold": 0.0})}, "0.333333 to 1, which"),
    "entropy without end": (
        {"levels": levels({"score": "predictive_entropy", "threshold": 1e300})}, r"threshold = 1e\+300 .* 0 to 1.09861"
    ),
    "information without end": (
        {"levels": levels({"score": "mutual_information", "threshold": 1.2})}, "threshold = 1.2 on mutual_information"
    ),
    "information of two draws": (
        {
            "binding": dataclasses.replace(BINDING, n_samples=2),
            "levels": levels({"score": "mutual_information", "threshold": 0.8}),
        },
        "threshold = 0.8 on mutual_information .* 0 to 0.693147",
    ),
    "information of one draw": (
        {"binding": dataclasses.replace(BINDING, n_samples=1), "levels": levels({}, score="mutual_information")},
        "mutual information of one draw, expected another score",
    ),
    "falling quantiles": ({"quantiles": quantiles(0.5, 0.4, 0.6)}, "none to fall while the coverage rises"),
    "quantiles out of order": ({"quantiles": CALIBRATION.quantiles[::-1]}, "distinct ones in rising order"),
    "a quantile left out": ({"quantiles": quantiles(0.4, 0.5, None)}, "quantile = None for coverage 0.95 from 600"),
    "a quantile of too few rows": (
        {"quantiles": (*CALIBRATION.quantiles, ConformalQuantile(coverage=0.999, quantile=1.0))},
        "quantile = 1.0 for coverage 0.999 from 600 proof rows, expected a number from 999 rows on, and none below",
    ),
    "no bins": ({"reliability": ()}, "0 reliability bins, expected 15"),
    "bins of fewer rows": ({"reliability": bins(at14=EMPTY)}, r"reliability bins of \d+ rows, expected of all 800"),
    "a bin of other confidences": (
        {"reliability": bins(at14=ReliabilityBin(LAST.count, 0.9, LAST.accuracy))},
        "reliability bin 14 with confidence 0.9, expected 0.933 to 1.000",
    ),
    "bins of other answers": (
        {"reliability": bins(at14=ReliabilityBin(LAST.count, LAST.confidence, 0.5))}, "that of the reliability bins, "
    ),
    "no curve": ({"curve": ()}, "0 curve points, expected 1 to 100"),
    "too long a curve": ({"curve": ((1.0, 0.1),) * 101}, "101 curve points"),
    "a risk above one": ({"curve": ((1.0, 1.5),)}, "out of range"),
    "a curve out of order": ({"curve": CALIBRATION.curve[::-1]}, "a curve that does not rise in coverage to 1"),
    "a curve that stops": ({"curve": CALIBRATION.curve[:-1]}, "a curve that does not rise in coverage to 1"),
    "entropies of fewer rows": (
        {"entropy": Histogram(edges=CALIBRATION.entropy.edges, counts=(1,) * 20)}, "entropy histogram of 20 rows"
    ),
    "entropies in one bin": ({"entropy": Histogram(edges=(0.0, 1.0), counts=(800,))}, "entropy histogram of 1 bins"),
    "entropies of more choices": (
        {"entropy": Histogram(edges=tuple(map(float, range(21))), counts=CALIBRATION.entropy.counts)},
        "20 bins up to 20.0, expected 20 equal ones up to ln 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_calibration_that_cannot_be_is_refused(name: str) -> None:
    changes, message = SPOILT[name]
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CALIBRATION, **changes)


def test_a_proof_of_one_row_is_refused() -> None:
    few = dataclasses.replace(ROWS, n_rows=4, n_tuning=1, n_proof=3)
    with pytest.raises(ConfigError, match="of 3 rows|p-value"):
        dataclasses.replace(CALIBRATION, rows=few)
    with pytest.raises(ConfigError, match="3 tuning and 1 proof rows of 4, expected a quarter and the rest, 1 and 3"):
        dataclasses.replace(ROWS, n_rows=4, n_tuning=3, n_proof=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_rows": 3}, "n_rows = 3, expected 4 to"),
        ({"n_rows": MAX_ROWS + 1}, "n_rows = 10000001"),
        ({"n_rows": 801}, "200 tuning and 600 proof rows of 801, expected .* 200 and 601"),
        ({"seed": -1}, "seed = -1 of the division"),
        ({"seed": 2**63}, "seed = 9223372036854775808 of the division"),
        ({"digest": "sha256:"}, "digest 'sha256:'"),
        ({"forms": ()}, r"forms \(\), expected prompt, messages, or both, once"),
        ({"forms": ("prompt", "prompt")}, "forms"),
        ({"fewest_choices": 1}, "rows of 1 to 3 choices"),
        ({"most_choices": 1}, "rows of 2 to 1 choices"),
    ],
)
def test_rows_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(ROWS, **change)


def test_the_number_of_choices_is_told_in_words() -> None:
    assert ROWS.n_choices == "2 to 3"
    assert dataclasses.replace(ROWS, fewest_choices=3).n_choices == "3"


@pytest.mark.parametrize(
    "change",
    [
        {"adapter_digest": "a" * 64}, {"dtype": ""}, {"n_samples": 0}, {"seed": -1}, {"temperature": 0.0},
        {"temperature": math.inf}, {"lapse": 1.0}, {"lapse": -0.1},
    ],
)  # fmt: skip
def test_a_binding_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="got"):
        dataclasses.replace(BINDING, **change)


@pytest.mark.parametrize(
    "quantile", [{"coverage": 0.0}, {"coverage": 1.0}, {"quantile": -0.1}, {"quantile": 1.1}, {"quantile": math.nan}]
)
def test_a_quantile_that_cannot_be_is_refused(quantile: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(quantile))):
        ConformalQuantile(**({"coverage": 0.9, "quantile": 0.5} | quantile))
