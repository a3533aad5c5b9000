"""Choice of the dtype that a server starts in."""

import torch

from blora.base_model import native_dtypes
from blora.calibration_file import calibrated_dtypes
from blora.errors import NotCalibratedError
from blora.server.settings import Settings

__all__ = ["pick_dtype"]


def pick_dtype(settings: Settings, device: torch.device) -> str:
    """Return the dtype of the settings, or the device's first dtype for which every named adapter is calibrated.

    An adapter without a calibration suits every dtype.

    Raises:
        NotCalibratedError: if there is no such dtype and uncalibrated answers are not allowed.
    """
    if settings.dtype != "auto":
        return settings.dtype
    native = native_dtypes(device)
    calibrated = {source.path: calibrated_dtypes(source.path) for source in settings.adapter_sources}
    known = {path: dtypes for path, dtypes in calibrated.items() if dtypes}
    for dtype in native:
        if all(dtype in dtypes for dtypes in known.values()):
            return dtype
    if settings.allow_uncalibrated:
        return native[0]
    there = "; ".join(f"{path} in {', '.join(sorted(dtypes))}" for path, dtypes in known.items())
    first = next(path for path, dtypes in known.items() if native[0] not in dtypes)
    raise NotCalibratedError(
        f"The adapters have no calibration in a common dtype that {device} computes in ({there}; it computes in "
        f"{', '.join(native)}): run `blora calibrate {first} --dtype {native[0]} --data ...`, name a --dtype, or start "
        "with --allow-uncalibrated"
    )
