"""What `blora calibrate` prints."""

import dataclasses

import pytest

from blora.training.commands.calibrate import _table
from tests.server.calibrations import calibration


@pytest.mark.parametrize(
    ("threshold", "printed"), [(5.97e-05, "5.97e-05"), (0.00028, "0.00028"), (0.512345678, "0.512346")]
)
def test_a_threshold_is_printed_with_digits_that_tell_it_from_nothing(threshold: float, printed: str) -> None:
    made = calibration("sha256:" + "a" * 64)
    *others, entropy = made.levels
    small = dataclasses.replace(made, levels=(*others, dataclasses.replace(entropy, threshold=threshold)))
    line = next(line for line in _table(small).splitlines() if "predictive_entropy" in line)
    assert line.split()[2] == printed
