"""`calibration.json`, beside an adapter's files: one calibration for each way in which the adapter is served.

It lies outside the adapter's digest, which each calibration names: a calibration changes nothing about the adapter, and
writing the adapter again leaves none behind.
"""

import json
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from blora.decision.calibrated import Binding, Calibration
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
    if not file.exists():
        return ()
    again = "calibrate again"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
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
    if not calibrations or len({calibration.binding for calibration in calibrations}) < len(calibrations):
        raise AdapterError(
            f"got {len(calibrations)} calibrations in {file}, expected at least one and no two for the same; {again}"
        )
    return calibrations


def store(folder: Path, calibration: Calibration) -> None:
    """Adds a calibration, in place of the one for the same dtype, draws and scoring; the file changes whole or not.

    Calibrations of other contents than the new one's adapter are left out: nothing can serve them any more.
    """

    def kept(other: Binding) -> bool:
        new = calibration.binding
        same_way = (other.dtype, other.n_samples, other.scoring) == (new.dtype, new.n_samples, new.scoring)
        return other.adapter_digest == new.adapter_digest and not same_way

    calibrations = (*(other for other in read(folder) if kept(other.binding)), calibration)
    text = json.dumps(asdict(_Contents(format_version=FORMAT_VERSION, calibrations=calibrations)), indent=1) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{CALIBRATION_FILE}-", delete=False) as partial:
        new = Path(partial.name)
        try:
            partial.write(text)
            partial.close()
            new.chmod(0o644)
            new.replace(folder / CALIBRATION_FILE)
        finally:
            new.unlink(missing_ok=True)


def for_serving(folder: Path, binding: Binding) -> Calibration | None:
    """The calibration for exactly this adapter, served in this way; None where there is no file.

    Raises:
        AdapterError: if there is a file and no calibration in it is for this, naming what differs.
    """
    calibrations = read(folder)
    if not calibrations:
        return None
    closest = min(calibrations, key=lambda calibration: len(_differing(calibration.binding, binding)))
    if not (names := _differing(closest.binding, binding)):
        return closest
    name = names[0]
    found = ", ".join(sorted({str(getattr(calibration.binding, name)) for calibration in calibrations}))
    raise AdapterError(
        f"got calibration for {name} {found} in {folder / CALIBRATION_FILE}, expected {getattr(binding, name)}, with "
        f"which the adapter is served; serve it as it was calibrated, run `blora calibrate` for this {name}, or remove "
        "the file"
    )


def _differing(one: Binding, other: Binding) -> list[str]:
    names = [field.name for field in fields(Binding)]
    return [name for name in names if getattr(one, name) != getattr(other, name)]
