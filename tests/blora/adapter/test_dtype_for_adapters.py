"""Which dtype adapters are served in: of the device's, the first that all of them are calibrated for."""

from pathlib import Path

import pytest
import torch

from benchmarks.server_process import ADAPTER
from blora.adapter import opening
from blora.adapter.calibration_file import read_calibrations
from blora.adapter.opening import dtype_for_adapters
from blora.errors import NotCalibratedError

CPU = torch.device("cpu")
# What `native_dtypes` says of each.
DEVICES = {
    "a GPU with bfloat16": ("bfloat16", "float16", "float32"),
    "a T4": ("float16", "float32"),
    "a CPU with bfloat16": ("bfloat16", "float32"),
    "an old laptop": ("float32",),
}


def picked(*adapters: Path, dtype: str = "auto", allow_uncalibrated: bool = False) -> str:
    return dtype_for_adapters(dtype, CPU, adapters, allow_uncalibrated=allow_uncalibrated)


@pytest.fixture
def calibrated_in(monkeypatch: pytest.MonkeyPatch) -> dict[Path, frozenset[str]]:
    """Adapters by folder, and the dtypes that each is calibrated for."""
    found: dict[Path, frozenset[str]] = {}
    monkeypatch.setattr(opening, "calibrated_dtypes", found.__getitem__)
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_the_demo_starts_on_every_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "native_dtypes", lambda _: DEVICES[device])
    dtype = picked(ADAPTER)
    assert dtype in DEVICES[device]
    assert dtype in {entry.binding.dtype for entry in read_calibrations(ADAPTER)}
    assert dtype == ("bfloat16" if "bfloat16" in DEVICES[device] else "float32")


def test_an_adapter_without_a_calibration_suits_every_dtype(
    calibrated_in: dict[Path, frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "native_dtypes", lambda _: ("bfloat16", "float32"))
    calibrated_in |= {Path("none"): frozenset(), Path("one"): frozenset({"float32"})}
    assert picked(Path("none")) == "bfloat16"
    assert picked(Path("none"), Path("one")) == "float32"


def test_all_adapters_have_to_share_a_dtype(
    calibrated_in: dict[Path, frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "native_dtypes", lambda _: ("bfloat16", "float32"))
    calibrated_in |= {Path("one"): frozenset({"float32"}), Path("two"): frozenset({"bfloat16"})}
    expected = (
        r"no calibration in a common dtype that cpu computes in \(one in float32; two in bfloat16; it computes in "
        r"bfloat16, float32\): run `blora calibrate one --dtype bfloat16 --data \.\.\.`, .* --allow-uncalibrated"
    )
    with pytest.raises(NotCalibratedError, match=expected):
        picked(Path("one"), Path("two"))
    assert picked(Path("one"), Path("two"), allow_uncalibrated=True) == "bfloat16"


def test_a_named_dtype_is_taken_as_it_is(calibrated_in: dict[Path, frozenset[str]]) -> None:
    calibrated_in[Path("one")] = frozenset({"float32"})
    assert picked(Path("one"), dtype="float16") == "float16"
