"""Loading of an adapter together with its base model."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from blora.adapter import Adapter, attach, load_adapter, read_config
from blora.adapter.calibration_file import calibrated_dtypes
from blora.base_model import EMBEDDED, EMBEDDED_ID, BaseModel, load_base_model, native_dtypes
from blora.errors import AdapterError, NotCalibratedError
from blora.inference.architecture import check_packing

__all__ = ["open_adapter", "open_base", "pick_dtype"]

COMMIT = re.compile("[0-9a-f]{40}")


def open_base(base_model: str, *, device: str, dtype: str) -> BaseModel:
    """Load a base model and check that packing several choices into one row does not change their scores.

    Raises:
        BaseModelError: if the model does not load, or packing changes its scores.
    """
    base = load_base_model(base_model, device=device, dtype=dtype)
    check_packing(base)
    return base


def open_adapter(
    path: Path, *, base_model: str | None, device: str, dtype: str, name: str | None = None
) -> tuple[BaseModel, Adapter]:
    """Return a base model with an adapter's modules prepared for draws, and the adapter.

    Args:
        path: the adapter's folder.
        base_model: see `load_base_model`; None for the model that the adapter was trained on.
        device: see `load_base_model`.
        dtype: see `load_base_model`.
        name: name of the adapter; the folder's name by default.

    Raises:
        AdapterError: if the folder holds no adapter of that base model.
        BaseModelError: if the base model does not load.
    """
    base = open_base(base_model or _own_base_model(path), device=device, dtype=dtype)
    adapter = load_adapter(path, base, name=name)
    attach(base, adapter)
    return base, adapter


def _own_base_model(path: Path) -> str:
    """Return the `load_base_model` spec of the base model that an adapter was trained on.

    Raises:
        AdapterError: if the folder holds no adapter, or the base model came from a folder or a file.
    """
    ref = read_config(path).base_model
    if ref.id == EMBEDDED_ID:
        return EMBEDDED
    if "/" not in ref.id:
        raise AdapterError(
            f"got adapter {path} of base model {ref.id!r}, which was loaded from a folder or a file, expected its "
            "path: pass it (--base-model, or base_model= in Python)"
        )
    return f"{ref.id}@{ref.revision}" if COMMIT.fullmatch(ref.revision or "") else ref.id


def pick_dtype(dtype: str, device: torch.device, adapters: Sequence[Path], *, allow_uncalibrated: bool) -> str:
    """Return the dtype to serve adapters in: the given one, or for auto the first one that suits all adapters.

    A dtype suits an adapter that is calibrated for it, and an adapter without any calibration.

    Args:
        dtype: float32, bfloat16, float16 or auto.
        device: device that will serve the adapters; its native dtypes are tried in order of preference.
        adapters: the adapters' folders.
        allow_uncalibrated: whether auto may fall back to a dtype for which a calibration does not hold.

    Raises:
        NotCalibratedError: if no native dtype suits all adapters; the message names the calibrated dtypes.
    """
    if dtype != "auto":
        return dtype
    native = native_dtypes(device)
    calibrated = {path: calibrated_dtypes(path) for path in adapters}
    known = {path: dtypes for path, dtypes in calibrated.items() if dtypes}
    for candidate in native:
        if all(candidate in dtypes for dtypes in known.values()):
            return candidate
    if allow_uncalibrated:
        return native[0]
    there = "; ".join(f"{path} in {', '.join(sorted(dtypes))}" for path, dtypes in known.items())
    first = next(path for path, dtypes in known.items() if native[0] not in dtypes)
    raise NotCalibratedError(
        f"The adapters have no calibration in a common dtype that {device} computes in ({there}; it computes in "
        f"{', '.join(native)}): run `blora calibrate {first} --dtype {native[0]} --data ...`, name a --dtype, or start "
        "with --allow-uncalibrated"
    )
