"""Loading of an adapter, or of the LoRA that a new adapter starts from, together with its base model."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from blora.adapter import Adapter, attach, is_adapter, load_adapter, read_config
from blora.adapter.base_check import check_base
from blora.adapter.calibration_file import calibrated_dtypes
from blora.adapter.lora import named_base
from blora.base_model import EMBEDDED, EMBEDDED_ID, BaseModel, load_base_model, native_dtypes
from blora.config import BaseModelRef
from blora.decision.calibration import VLLM
from blora.errors import AdapterError, BaseModelError, NotCalibratedError
from blora.inference.architecture import check_packing
from blora.inference.companion import with_companion

__all__ = ["base_model_of", "check_lora_base", "dtype_for_adapters", "open_adapter", "open_base"]

logger = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")
# A model on the hub, with its owner.
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+(@.+)?")
# What stands for a folder or a file that is not known.
PATH = "PATH"


def open_base(base_model: str, *, device: str, dtype: str) -> BaseModel:
    """Load a base model and check that scoring several choices together, packed or not, does not change their scores.

    Args:
        base_model: see `load_base_model`; with a second one after a +, `MODEL+ENCODER`, the companion beside it.
        device: see `load_base_model`.
        dtype: see `load_base_model`.

    Raises:
        BaseModelError: if a model does not load, or its scores change both ways, or the companion is no encoder.
    """
    own, companion = _split(os.fspath(base_model))
    base = check_packing(load_base_model(own, device=device, dtype=dtype))
    if companion is None:
        return base
    return with_companion(base, check_packing(load_base_model(companion, device=device, dtype=dtype)))


def _split(base_model: str) -> tuple[str, str | None]:
    """Return the specs of a base model and of its companion.

    A + in the path of a folder or a file divides nothing, nor does one in a revision: after an @, a + divides before a
    path that exists, or before owner/name.

    >>> _split("embedded+owner/encoder@v1")
    ('embedded', 'owner/encoder@v1')
    >>> _split("owner/model@v1+cu118+owner/encoder")
    ('owner/model@v1+cu118', 'owner/encoder')
    >>> _split("owner/model@v1+cu118")
    ('owner/model@v1+cu118', None)
    """
    places = [place for place, sign in enumerate(base_model) if sign == "+"]
    if not places or os.path.exists(base_model):
        return base_model, None
    found = next((place for place in reversed(places) if os.path.exists(base_model[:place])), None)
    if found is None:
        found = next((place for place in places if _divides(base_model[:place], base_model[place + 1 :])), None)
    if found is None:
        return base_model, None
    own, companion = base_model[:found], base_model[found + 1 :]
    if not own or not companion:
        raise BaseModelError(f"got base model {base_model!r}, expected one before the + and an encoder after it")
    return own, companion


def _divides(own: str, companion: str) -> bool:
    """Return whether the + between two texts divides two models, rather than being part of the revision before it."""
    return "@" not in own or os.path.exists(companion) or ON_HUB.fullmatch(companion) is not None


def open_adapter(
    path: Path, *, base_model: str | None, device: str, dtype: str, name: str | None = None
) -> tuple[BaseModel, Adapter]:
    """Return a base model with an adapter's modules prepared for draws, and the adapter.

    Args:
        path: the adapter's folder.
        base_model: see `open_base`; None for the model that the adapter was trained on.
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


def base_model_of(lora: Path | None) -> str:
    """Return the `open_base` spec of the base model that a new adapter gets by default.

    Args:
        lora: the LoRA or adapter that the new adapter starts from; None to start from zero.

    Returns:
        The base model of a LoRA that `blora train` made, and the embedded one for any other.

    Raises:
        AdapterError: if the LoRA's base model came from a folder or a file.
    """
    return _own_base_model(lora) if lora is not None and is_adapter(lora) else EMBEDDED


def check_lora_base(lora: Path, base: BaseModel) -> None:
    """Check that a LoRA was trained on a base model.

    The base model of a LoRA that `blora train` made is known by its weights, as that of an adapter. Other LoRAs name
    it at most, so that another name causes a warning only.

    Raises:
        AdapterError: if `blora train` made the LoRA on another base model.
    """
    if is_adapter(lora):
        check_base(read_config(lora), base)
    elif (named := named_base(lora)) is not None and not _same_name(named, base.ref.id):
        logger.warning(
            "the LoRA %s names the base model %s and is used on %s: on other weights its update means nothing, so "
            "give its own base model, with --base-model or base_model=",
            *(lora, named, base.ref.id),
        )


def _same_name(first: str, second: str) -> bool:
    """Return whether two names may be those of one base model: hub ids, folders or files.

    The owner counts if both names are hub ids. A folder or a file has none.
    """
    parts = [name.rstrip("/").lower().split("/") for name in (first, second)]
    return parts[0] == parts[1] if all(len(part) == 2 for part in parts) else parts[0][-1] == parts[1][-1]


def _own_base_model(path: Path) -> str:
    """Return the `open_base` spec of the base model that an adapter was trained on, with its companion.

    Raises:
        AdapterError: if the folder holds no adapter, or one of the models came from a folder or a file.
    """
    config = read_config(path)
    models = {"base model": config.base_model} | ({"companion": config.companion} if config.companion else {})
    spec = "+".join(map(_spec, models.values()))
    for what, ref in models.items():
        if _spec(ref) == PATH:
            raise AdapterError(
                f"got adapter {path} of {what} {ref.id!r}, which was loaded from a folder or a file, expected its "
                f"path: pass it (--base-model {spec}, or base_model= in Python)"
            )
    return spec


def _spec(ref: BaseModelRef) -> str:
    """Return the `load_base_model` spec of a model, `PATH` for one that was loaded from a folder or a file."""
    if ref.id == EMBEDDED_ID:
        return EMBEDDED
    if "/" not in ref.id:
        return PATH
    return f"{ref.id}@{ref.revision}" if COMMIT.fullmatch(ref.revision or "") else ref.id


def dtype_for_adapters(dtype: str, device: torch.device, adapters: Sequence[Path], *, allow_uncalibrated: bool) -> str:
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
    other = "serve with --engine vllm" if any(VLLM in dtypes for dtypes in known.values()) else "name a --dtype"
    raise NotCalibratedError(
        f"The adapters have no calibration in a common dtype that {device} computes in ({there}; it computes in "
        f"{', '.join(native)}): run `blora calibrate {first} --dtype {native[0]} --data ...`, {other}, or start with "
        "--allow-uncalibrated"
    )
