"""Choice of the dtype that a server starts in: the device's first one for which its adapters are calibrated."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.server_process import ADAPTER
from blora.calibration_file import read, store
from blora.errors import NotCalibratedError
from blora.server.engines import precision
from blora.server.engines.precision import pick_dtype
from blora.server.settings import Settings
from tests.server.engines.asking import calibrated, loaded, settings

CPU = torch.device("cpu")
# What `native_dtypes` says of each.
DEVICES = {
    "a GPU with bfloat16": ("bfloat16", "float16", "float32"),
    "a T4": ("float16", "float32"),
    "a CPU with bfloat16": ("bfloat16", "float32"),
    "an old laptop": ("float32",),
}


def settings_of(*adapters: Path, **more: object) -> Settings:
    return Settings(adapters=tuple(map(str, adapters)), **more)  # type: ignore[arg-type]


@pytest.fixture
def calibrated_in(monkeypatch: pytest.MonkeyPatch) -> dict[Path, frozenset[str]]:
    """Return the dtypes of each adapter's calibration by folder, for the test to fill in."""
    found: dict[Path, frozenset[str]] = {}
    monkeypatch.setattr(precision, "calibrated_dtypes", found.__getitem__)
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_the_demo_starts_on_every_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_dtypes", lambda _: DEVICES[device])
    dtype = pick_dtype(settings_of(ADAPTER), CPU)
    assert dtype in DEVICES[device]
    assert dtype in {entry.binding.dtype for entry in read(ADAPTER)}
    assert dtype == ("bfloat16" if "bfloat16" in DEVICES[device] else "float32")


def test_an_adapter_without_a_calibration_suits_every_dtype(
    calibrated_in: dict[Path, frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "native_dtypes", lambda _: ("bfloat16", "float32"))
    calibrated_in |= {Path("none"): frozenset(), Path("one"): frozenset({"float32"})}
    assert pick_dtype(settings_of(Path("none")), CPU) == "bfloat16"
    assert pick_dtype(settings_of(Path("none"), Path("one")), CPU) == "float32"


def test_all_adapters_have_to_share_a_dtype(
    calibrated_in: dict[Path, frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "native_dtypes", lambda _: ("bfloat16", "float32"))
    calibrated_in |= {Path("one"): frozenset({"float32"}), Path("two"): frozenset({"bfloat16"})}
    expected = (
        r"no calibration in a common dtype that cpu computes in \(one in float32; two in bfloat16; it computes in "
        r"bfloat16, float32\): run `blora calibrate one --dtype bfloat16 --data \.\.\.`, .* --allow-uncalibrated"
    )
    with pytest.raises(NotCalibratedError, match=expected):
        pick_dtype(settings_of(Path("one"), Path("two")), CPU)
    assert pick_dtype(settings_of(Path("one"), Path("two"), allow_uncalibrated=True), CPU) == "bfloat16"


def test_a_named_dtype_is_taken_as_it_is(calibrated_in: dict[Path, frozenset[str]]) -> None:
    calibrated_in[Path("one")] = frozenset({"float32"})
    assert pick_dtype(settings_of(Path("one"), dtype="float16"), CPU) == "float16"


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
    [known] = read(calibratable / "one")
    level = replace(known.default_level, threshold=0.95)
    levels = tuple(level if old == known.default_level else old for old in known.levels)
    binding = replace(known.binding, dtype="float16")
    store(calibratable / "one", replace(known, binding=binding, levels=levels))
    async with loaded(settings(calibratable, allow_uncalibrated=True)) as (_, state):
        assert state.adapters[0].policy is not None
        assert state.adapters[0].policy.min_confidence == 0.95


async def test_a_calibration_of_earlier_contents_gives_no_thresholds(calibratable: Path) -> None:
    await calibrated(calibratable, adapter_digest="sha256:" + "e" * 64)
    async with loaded(settings(calibratable, allow_uncalibrated=True)) as (_, state):
        one = state.adapters[0]
        assert (one.calibration, one.policy, one.not_calibrated) == (None, None, True)
