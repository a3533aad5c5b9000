"""What `blora calibrate` prints."""

import dataclasses

import pytest

from blora.decision.by_choice import ChoiceCounts, table
from blora.training.commands.calibrate import _table
from tests.server.calibrations import calibration


@pytest.mark.parametrize(
    ("threshold", "printed"), [(5.97e-05, "5.97e-05"), (0.00028, "0.00028"), (0.512345678, "0.512346")]
)
def test_a_threshold_is_printed_with_digits_that_tell_it_from_nothing(threshold: float, printed: str) -> None:
    made = calibration("sha256:" + "a" * 64)
    *others, entropy = made.levels
    small = dataclasses.replace(made, levels=(*others, dataclasses.replace(entropy, threshold=threshold)))
    line = next(line for line in _table(small, None).splitlines() if "predictive_entropy" in line)
    assert line.split()[2] == printed


def test_the_adapters_own_thresholds_that_decide_no_longer_are_named() -> None:
    made, own = calibration("sha256:" + "a" * 64), {"min_confidence": 0.999, "max_mutual_information": 0.0001}
    told = _table(made, own).splitlines()[-1]
    assert told == "The adapter's own thresholds no longer decide: min_confidence 0.999, max_mutual_information 0.0001."
    assert "no longer" not in _table(made, None)


def test_the_table_by_choice_comes_last() -> None:
    counts = ChoiceCounts(choice="billing", n_rows=200, n_missed=3, n_answers=150, n_wrong=2)
    made = dataclasses.replace(calibration("sha256:" + "a" * 64), choices=(counts,))
    told = _table(made, {"min_confidence": 0.999})
    assert told.endswith(table([counts]))
    assert "no longer decide" in told
