"""Adapters whose calibration does not hold as they are served: refused, or served by the thresholds of other dtypes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blora.adapter import load_adapter
from blora.adapter.calibration_file import read_calibrations, store_calibration
from blora.base_model import load_base_model
from blora.decision.gate import Gate
from blora.errors import NotCalibratedError
from blora.scores import SCORES
from blora.server.engines.loading import handle_of
from blora.training.head.familiarity import fit_familiarity
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


async def test_the_gate_of_another_dtype_closes_among_the_rows_that_it_was_made_of(calibratable: Path) -> None:
    await calibrated(calibratable, dtype="bfloat16")
    [known] = read_calibrations(calibratable / "one")
    loose = Gate(max_false_alarms=0.05, n_beyond=0, reference=tuple(100.0 + n for n in range(79)))
    tight = Gate(max_false_alarms=0.05, n_beyond=1, reference=tuple(float(n) for n in range(99)))
    for dtype, gate in (("bfloat16", loose), ("float16", tight)):
        binding = replace(known.binding, dtype=dtype)
        store_calibration(calibratable / "one", replace(known, binding=binding, gate=gate))
    adapter = load_adapter(
        calibratable / "one", load_base_model(str(calibratable / "tiny"), device="cpu", dtype="float32")
    )
    states = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    few = fit_familiarity((0,), states, states).familiarity
    handle = handle_of(
        replace(adapter, familiarity=few), device=torch.device("cpu"), dtype="float32", allow_uncalibrated=True
    )
    assert (handle.calibration, handle.policy is not None) == (None, True)
    limit = handle.policy.min_familiarity if handle.policy is not None else None
    assert limit == tight.min_familiarity
    asked = [handle.p_value(distance) for distance in (tight.distance, tight.distance + 0.5, 1e6)]
    assert [SCORES["familiarity"].fails(value, limit) for value in asked] == [False, True, True]


async def test_a_calibration_of_earlier_contents_gives_no_thresholds(calibratable: Path) -> None:
    await calibrated(calibratable, adapter_digest="sha256:" + "e" * 64)
    async with loaded(settings(calibratable, allow_uncalibrated=True)) as (_, state):
        one = state.adapters[0]
        assert (one.calibration, one.policy, one.not_calibrated) == (None, None, True)
