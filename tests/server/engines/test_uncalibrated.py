"""Adapters whose calibration does not hold as they are served: refused, or served by the thresholds of other dtypes."""

from dataclasses import replace
from pathlib import Path

import pytest

from blora.adapter.calibration_file import read_calibrations, store_calibration
from blora.errors import NotCalibratedError
from tests.server.engines.asking import calibrated, loaded, settings


async def test_uncalibrated_answers_are_allowed_on_request_and_thresholds_still_decide(calibratable: Path) -> None:
    digest = await calibrated(calibratable, dtype="bfloat16")
    with pytest.raises(
        NotCalibratedError, match="serve it with --dtype bfloat16, run `blora calibrate .*one --dtype flo"
    ):
        async with loaded(settings(calibratable)):
            pass
    async with loaded(settings(calibratable, allow_uncalibrated=True)) as (_, state):
        one, two = state.adapters
        assert (one.digest, one.calibration, one.not_calibrated, two.not_calibrated) == (digest, None, True, False)
        assert one.policy is not None
        assert one.policy.min_confidence == 0.9


async def test_of_several_other_dtypes_the_strictest_threshold_decides(calibratable: Path) -> None:
    await calibrated(calibratable, dtype="bfloat16")
    [known] = read_calibrations(calibratable / "one")
    level = replace(known.default_level, threshold=0.95)
    levels = tuple(level if old == known.default_level else old for old in known.levels)
    binding = replace(known.binding, dtype="float16")
    store_calibration(calibratable / "one", replace(known, binding=binding, levels=levels))
    async with loaded(settings(calibratable, allow_uncalibrated=True)) as (_, state):
        assert state.adapters[0].policy is not None
        assert state.adapters[0].policy.min_confidence == 0.95


async def test_a_calibration_of_earlier_contents_gives_no_thresholds(calibratable: Path) -> None:
    await calibrated(calibratable, adapter_digest="sha256:" + "e" * 64)
    async with loaded(settings(calibratable, allow_uncalibrated=True)) as (_, state):
        one = state.adapters[0]
        assert (one.calibration, one.policy, one.not_calibrated) == (None, None, True)
