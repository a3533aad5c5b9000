"""`calibration.json`, beside an adapter's files: one calibration for each dtype in which the adapter is served.

It lies outside the adapter's digest, which each calibration names: a calibration changes nothing about the adapter, and
writing the adapter again leaves none behind. The digest covers its own settings, draws and recalibration among
them, so that calibrations of the same contents can differ in the dtype of the base model alone.

Its own digest tells a file that was edited since it was written; its numbers are not proved again. A digest keeps no
forger out, who would make another: whoever may write into an adapter's folder decides what the adapter answers.

The file remembers every ask of calibration rows too, refused ones among them. In whichever dtype: they are nearly the
same predictor, and what one was refused is known when the other is asked.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from blora.atomic import write_file
from blora.decision.asks import AskedRows
from blora.decision.calibration import Binding, Calibration
from blora.errors import AdapterError, ConfigError, NotCalibratedError
from blora.files import read_json

__all__ = ["CALIBRATION_FILE", "asked", "body_digest", "calibrated_dtypes", "for_serving", "read", "remember", "store"]

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 3
# A row that was asked takes twelve: room for a million of them.
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    format_version: int
    calibrations: tuple[Calibration, ...]
    asked: tuple[AskedRows, ...] = ()


def read(folder: Path | str) -> tuple[Calibration, ...]:
    """Every calibration in an adapter's folder; none where there is no file.

    Raises:
        AdapterError: naming the first field that is missing, unknown or wrong.
    """
    return _read(folder).calibrations


def calibrated_dtypes(folder: Path | str) -> frozenset[str]:
    """Return the dtypes that an adapter's folder has a calibration for; none where there is no file.

    Raises:
        AdapterError: see `read`.
    """
    return frozenset(entry.binding.dtype for entry in read(folder))


def asked(folder: Path | str) -> tuple[AskedRows, ...]:
    """Return all rows that were asked to prove something about the adapter; none where there is no file.

    Raises:
        AdapterError: see `read`.
    """
    return _read(folder).asked


def _read(folder: Path | str) -> _Contents:
    file = Path(folder) / CALIBRATION_FILE
    again = "remove it and calibrate again"
    if not os.path.lexists(file):
        return _Contents(format_version=FORMAT_VERSION, calibrations=())
    raw = read_json(file, most_bytes=MOST_BYTES, mend=again)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"got format_version {version!r} in {file}, expected {FORMAT_VERSION}; upgrade blora or {again}"
        )
    if raw.pop("digest", None) != body_digest(raw):
        raise AdapterError(
            f"got {file}, which is not as `blora calibrate` wrote it, expected contents of its own digest: it was "
            f"edited; restore it, or {again}"
        )
    try:
        contents = TypeAdapter(_Contents).validate_json(json.dumps(raw))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise AdapterError(
            f"got a bad value at {where} of {file} ({first['msg']}), expected a valid calibration; {again}"
        ) from exc
    except ConfigError as exc:
        raise AdapterError(f"{file}: {exc}; {again}") from exc
    calibrations = contents.calibrations
    served = {(entry.binding.adapter_digest, entry.binding.dtype) for entry in calibrations}
    if not (calibrations or contents.asked) or len(served) < len(calibrations):
        raise AdapterError(
            f"got {len(calibrations)} calibrations in {file}, expected at least one, or asks alone, and no two for the "
            f"same contents and dtype; {again}"
        )
    return contents


def body_digest(raw: dict[str, Any]) -> str:
    """Return the SHA-256 over the contents of a file, "sha256:...", whatever its layout and order of names.

    Args:
        raw: everything in it but the digest.
    """
    canonical = json.dumps(raw, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _added(known: tuple[AskedRows, ...], rows: AskedRows) -> tuple[AskedRows, ...]:
    """Return all rows that were asked, the same rows once with all distinct asks."""
    old = next((one for one in known if one.same(rows)), None)
    if old is None:
        return (*known, rows)
    asks = tuple(dict.fromkeys((*old.asks, *rows.asks)))
    return tuple(replace(rows, asks=asks) if one is old else one for one in known)


def remember(folder: Path | str, rows: AskedRows) -> None:
    """Write down what rows are asked; the file changes whole or not.

    Raises:
        AdapterError: see `read`.
    """
    contents = _read(folder)
    _write(folder, replace(contents, asked=_added(contents.asked, rows)))


def store(folder: Path | str, calibration: Calibration) -> None:
    """Adds a calibration, in place of the one for the same dtype; the file changes whole or not.

    Calibrations and asks of other contents than the new one's adapter are left out: nothing can serve them any more.
    """
    new, old = calibration.binding, _read(folder)
    kept = [
        entry
        for entry in old.calibrations
        if entry.binding.adapter_digest == new.adapter_digest and entry.binding.dtype != new.dtype
    ]
    own = tuple(rows for rows in old.asked if rows.adapter_digest == new.adapter_digest)
    _write(folder, replace(old, calibrations=(*kept, calibration), asked=own))


def _write(folder: Path | str, contents: _Contents) -> None:
    raw = asdict(contents)
    text = json.dumps({"format_version": FORMAT_VERSION, "digest": body_digest(raw)} | raw, indent=1) + "\n"
    write_file(Path(folder) / CALIBRATION_FILE, text)


def for_serving(folder: Path | str, binding: Binding) -> Calibration | None:
    """The calibration for exactly this adapter, served in this way; None where there is no file.

    Raises:
        NotCalibratedError: if every calibration is for other contents or other dtypes, naming them.
        AdapterError: if the file cannot be read, or was edited.
    """
    calibrations = read(folder)
    if not calibrations:
        return None
    file = Path(folder) / CALIBRATION_FILE
    if not (own := [entry for entry in calibrations if entry.binding.adapter_digest == binding.adapter_digest]):
        found = ", ".join(sorted({entry.binding.adapter_digest for entry in calibrations}))
        raise NotCalibratedError(
            f"got calibration for adapter_digest {found} in {file}, expected {binding.adapter_digest}: the adapter has "
            "changed since; run `blora calibrate` for it, or remove the file"
        )
    entry = next((entry for entry in own if entry.binding.dtype == binding.dtype), None)
    if entry is None:
        found = ", ".join(sorted(entry.binding.dtype for entry in own))
        raise NotCalibratedError(
            f"got calibration for dtype {found} in {file}, expected {binding.dtype}, in which the adapter is served; "
            f"serve it with --dtype {sorted(entry.binding.dtype for entry in own)[0]}, run `blora calibrate {folder} "
            f"--dtype {binding.dtype} --data ...`, or start with --allow-uncalibrated"
        )
    for field in fields(Binding):
        found, expected = getattr(entry.binding, field.name), getattr(binding, field.name)
        if found != expected:
            raise AdapterError(
                f"got calibration for {field.name} {found} in {file}, expected {expected}, as contents of this "
                "digest say: the file was edited; restore it, or remove it and calibrate again"
            )
    return entry
