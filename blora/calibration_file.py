"""`calibration.json`, beside an adapter's files: one calibration for each dtype in which the adapter is served.

It lies outside the adapter's digest, which each calibration names: a calibration changes nothing about the adapter, and
writing the adapter again leaves none behind. The digest covers its own settings, draws and recalibration among
them, so that calibrations of the same contents can differ in the dtype of the base model alone.
"""

import json
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from blora.decision.certificate import Binding, Calibration
from blora.errors import AdapterError, ConfigError

__all__ = ["CALIBRATION_FILE", "for_serving", "read", "store"]

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    format_version: int
    calibrations: tuple[Calibration, ...]


def read(folder: Path) -> tuple[Calibration, ...]:
    """Every calibration in an adapter's folder; none where there is no file.

    Raises:
        AdapterError: naming the first field that is missing, unknown or wrong.
    """
    file = folder / CALIBRATION_FILE
    again = "remove it and calibrate again"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        if isinstance(exc, FileNotFoundError) and not file.is_symlink():
            return ()
        raise AdapterError(
            f"got {file}, which cannot be read ({exc.strerror}), expected a calibration; {again}"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise AdapterError(f"got {file}, which is no JSON ({exc}), expected a calibration; {again}") from exc
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"got format_version {version!r} in {file}, expected {FORMAT_VERSION}; upgrade blora or {again}"
        )
    try:
        calibrations = TypeAdapter(_Contents).validate_json(json.dumps(raw)).calibrations
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise AdapterError(
            f"got a bad value at {where} of {file} ({first['msg']}), expected a valid calibration; {again}"
        ) from exc
    except ConfigError as exc:
        raise AdapterError(f"{file}: {exc}; {again}") from exc
    served = {(entry.binding.adapter_digest, entry.binding.dtype) for entry in calibrations}
    if not calibrations or len(served) < len(calibrations):
        raise AdapterError(
            f"got {len(calibrations)} calibrations in {file}, expected at least one and no two for the same contents "
            f"and dtype; {again}"
        )
    return calibrations


def store(folder: Path, calibration: Calibration) -> None:
    """Adds a calibration, in place of the one for the same dtype; the file changes whole or not.

    Calibrations of other contents than the new one's adapter are left out: nothing can serve them any more.
    """
    new = calibration.binding
    kept = [
        entry
        for entry in read(folder)
        if entry.binding.adapter_digest == new.adapter_digest and entry.binding.dtype != new.dtype
    ]
    calibrations = (*kept, calibration)
    text = json.dumps(asdict(_Contents(format_version=FORMAT_VERSION, calibrations=calibrations)), indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{CALIBRATION_FILE}-", delete=False) as partial:
        written = Path(partial.name)
        try:
            partial.write(text)
            partial.close()
            written.chmod(0o644)
            written.replace(folder / CALIBRATION_FILE)
        finally:
            written.unlink(missing_ok=True)


def for_serving(folder: Path, binding: Binding) -> Calibration | None:
    """The calibration for exactly this adapter, served in this way; None where there is no file.

    Raises:
        AdapterError: if there is a file and no calibration in it is for this, naming what differs.
    """
    calibrations = read(folder)
    if not calibrations:
        return None
    file = folder / CALIBRATION_FILE
    if not (own := [entry for entry in calibrations if entry.binding.adapter_digest == binding.adapter_digest]):
        found = ", ".join(sorted({entry.binding.adapter_digest for entry in calibrations}))
        raise AdapterError(
            f"got calibration for adapter_digest {found} in {file}, expected {binding.adapter_digest}: the adapter has "
            "changed since; run `blora calibrate` for it, or remove the file"
        )
    entry = next((entry for entry in own if entry.binding.dtype == binding.dtype), None)
    if entry is None:
        found = ", ".join(sorted(entry.binding.dtype for entry in own))
        raise AdapterError(
            f"got calibration for dtype {found} in {file}, expected {binding.dtype}, in which the adapter is served; "
            "serve it as it was calibrated, run `blora calibrate` for this dtype, or remove the file"
        )
    for field in fields(Binding):
        found, expected = getattr(entry.binding, field.name), getattr(binding, field.name)
        if found != expected:
            raise AdapterError(
                f"got calibration for {field.name} {found} in {file}, expected {expected}, as contents of this "
                "digest say: the file was edited; restore it, or remove it and calibrate again"
            )
    return entry
