"""`calibration.json`, beside an adapter's files: one calibration for each dtype in which the adapter is served.

The adapter's digest does not cover this file, and each calibration names that digest: a calibration changes nothing
about the adapter, and writing other contents removes it. Since the adapter's digest covers its settings, with draws and
recalibration among them, two calibrations of the same contents can differ only in the base model's dtype.

The file has a digest of its own, which reveals edits; the proofs are not repeated on reading. The digest does not
protect against forgery: a forger would compute it anew, and anyone with write access to an adapter's folder controls
the adapter's answers.

The file also records every ask of calibration rows, refused asks included, and keeps this record when the adapter is
written again. Asks in all dtypes and of all contents count together, because each is another chance to prove a target
that does not hold.

Every change is made under a lock on the folder, so that calibrations that run at once lose nothing of each other's, and
a text is written only if the reader accepts it.
"""

import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from blora.decision.asks import Ask, AskedRows, earlier_asks
from blora.decision.calibration import VLLM, Binding, Calibration
from blora.disk.atomic import write_file
from blora.disk.digests import canonical_digest
from blora.disk.files import UnreadableError, is_present, read_json
from blora.disk.locks import locked
from blora.errors import AdapterError, ConfigError, NotCalibratedError

__all__ = [
    "CALIBRATION_FILE",
    "calibrated_dtypes",
    "carry_over",
    "check_ask",
    "for_serving",
    "read_calibrations",
    "record_ask",
    "store_calibration",
]

logger = logging.getLogger(__name__)

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 4
# The fingerprint of an asked row takes twelve bytes, so this is room for a million rows.
MOST_BYTES = 16 * 2**20
# Kept free by asks, for the calibrations that follow.
ROOM_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    format_version: int
    calibrations: tuple[Calibration, ...]
    asked: tuple[AskedRows, ...] = ()


def read_calibrations(folder: Path | str) -> tuple[Calibration, ...]:
    """Return every calibration in an adapter's folder; without a file, an empty tuple.

    Raises:
        AdapterError: naming the first field that is missing, unknown or wrong.
    """
    return _read(folder).calibrations


def calibrated_dtypes(folder: Path | str) -> frozenset[str]:
    """Return the dtypes for which an adapter's folder has a calibration; without a file, an empty set.

    Raises:
        AdapterError: see `read_calibrations`.
    """
    return frozenset(entry.binding.dtype for entry in read_calibrations(folder))


def _read(folder: Path | str) -> _Contents:
    file = Path(folder) / CALIBRATION_FILE
    again = "remove it and calibrate again"
    if not is_present(file):
        return _Contents(format_version=FORMAT_VERSION, calibrations=())
    return _parsed(read_json(file, most_bytes=MOST_BYTES, advice=again), file, again)


def _parsed(raw: Any, file: Path, again: str) -> _Contents:
    """Return the contents that a file's JSON states; `again` is the advice for the error message."""
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"got format_version {version!r} in {file}, expected {FORMAT_VERSION}; upgrade blora or {again}"
        )
    if raw.pop("digest", None) != canonical_digest(raw):
        raise AdapterError(
            f"got {file}, which is not as `blora calibrate` wrote it, expected contents of its own digest: it was "
            f"edited; restore it, or {again}"
        )
    try:
        contents = TypeAdapter(_Contents).validate_json(json.dumps(raw))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AdapterError(
            f"got a bad value at {where} of {file} ({first['msg']}), expected a valid calibration; {again}"
        ) from exc
    except ConfigError as exc:
        raise AdapterError(f"{file}: {exc}; {again}") from exc
    calibrations = contents.calibrations
    served = {(entry.binding.adapter_digest, entry.binding.dtype) for entry in calibrations}
    if not (calibrations or contents.asked) or len(served) < len(calibrations):
        raise AdapterError(
            f"got {len(calibrations)} calibrations in {file}, expected at least one, or attempts alone, and no two for "
            f"the same contents and dtype; {again}"
        )
    return contents


def _added(known: tuple[AskedRows, ...], rows: AskedRows) -> tuple[AskedRows, ...]:
    """Return the known rows with the new ones added; equal rows are merged, without asks that merely repeat another."""
    old = next((one for one in known if one.same(rows)), None)
    if old is None:
        return (*known, rows)
    asks = (*old.asks, *(ask for ask in rows.asks if not (ask.repeatable and ask in old.asks)))
    return tuple(replace(rows, asks=asks) if one is old else one for one in known)


def check_ask(folder: Path | str, rows: AskedRows) -> None:
    """Raise the error that `record_ask` would raise, before the work on the rows begins.

    Raises:
        ConfigError: see `record_ask`.
        AdapterError: see `record_ask`.
    """
    with locked(Path(folder)):
        _with_ask(folder, rows)


def record_ask(folder: Path | str, rows: AskedRows) -> tuple[Ask, ...]:
    """Record rows and their ask, and return the earlier asks of overlapping rows.

    Args:
        folder: the adapter's folder.
        rows: the rows, whose last ask is the new one.

    Raises:
        ConfigError: if the deltas add up to 1 or more, or the rows are too many to be recorded; the file stays then.
        AdapterError: if the file cannot be read, see `read_calibrations`, or the folder cannot be locked.
    """
    with locked(Path(folder)):
        earlier, text = _with_ask(folder, rows)
        write_file(Path(folder) / CALIBRATION_FILE, text)
    return earlier


def _with_ask(folder: Path | str, rows: AskedRows) -> tuple[tuple[Ask, ...], str]:
    """Return the earlier asks of overlapping rows, and the file's text with the new ask."""
    contents = _read(folder)
    earlier = earlier_asks(contents.asked, rows, rows.asks[-1])
    asked = _added(contents.asked, rows)
    return earlier, _text(folder, replace(contents, asked=asked), room=ROOM_BYTES)


def store_calibration(folder: Path | str, calibration: Calibration) -> None:
    """Add a calibration, in place of the one for the same dtype; the file changes atomically.

    Calibrations for other adapter contents are dropped, since these contents can no longer be served. Their asks stay
    and count.

    Raises:
        ConfigError: see `record_ask`.
        AdapterError: if a value would not be read back, the file cannot be read, or the folder cannot be locked.
    """
    with locked(Path(folder)):
        new, old = calibration.binding, _read(folder)
        kept = [
            entry
            for entry in old.calibrations
            if entry.binding.adapter_digest == new.adapter_digest and entry.binding.dtype != new.dtype
        ]
        text = _text(folder, replace(old, calibrations=(*kept, calibration)))
        write_file(Path(folder) / CALIBRATION_FILE, text)


def carry_over(folder: Path, new: Path, adapter_digest: str) -> None:
    """Write what an adapter's file keeps into the folder of the contents that are about to take the adapter's place.

    The record of asks is kept, and so are calibrations for the new contents, which may be those of the adapter. Of a
    file that is not as it was written nothing is kept. A log message tells what is kept and what is not.

    Args:
        folder: the adapter's folder, whose lock the caller holds.
        new: the folder of the new contents; it gets no file if nothing is kept.
        adapter_digest: digest of the new contents.

    Raises:
        OSError: if the new file cannot be written.
        UnreadableError: if the adapter's file cannot be read at the moment.
    """
    file = folder / CALIBRATION_FILE
    if not is_present(file):
        return
    try:
        old = _read(folder)
        kept = tuple(entry for entry in old.calibrations if entry.binding.adapter_digest == adapter_digest)
        text = _text(folder, replace(old, calibrations=kept))
    except UnreadableError:
        raise
    except (AdapterError, ConfigError):
        logger.warning(
            "removed %s of the earlier adapter, with its record of calibration attempts: run blora calibrate again, on "
            "rows that no attempt has used",
            file,
        )
        return
    write_file(new / CALIBRATION_FILE, text)
    if kept:
        logger.info("kept %s, whose calibrations are of the same contents", file)
    else:
        logger.warning(
            "kept the record of calibration attempts (%d) in %s, and removed calibrations of the earlier adapter (%d): "
            "run blora calibrate again, on rows that no attempt has used, because attempts on the same rows add up",
            *(sum(len(rows.asks) for rows in old.asked), file, len(old.calibrations)),
        )


def _text(folder: Path | str, contents: _Contents, *, room: int = 0) -> str:
    """Return contents as a file's text, which the reader accepts; so many bytes of a file stay free.

    Raises:
        ConfigError: if the text is larger than allowed.
        AdapterError: if the reader refuses a value.
    """
    file, raw = Path(folder) / CALIBRATION_FILE, asdict(contents)
    text = json.dumps({"format_version": FORMAT_VERSION, "digest": canonical_digest(raw)} | raw, indent=1) + "\n"
    most = MOST_BYTES - room
    if len(text) > most:  # ASCII, so these are bytes
        raise ConfigError(
            f"got {len(text)} bytes for {file}, which remembers each row of every calibration attempt, expected at "
            f"most {most}: calibrate on fewer rows, at most a million in all attempts; nothing was written"
        )
    _parsed(json.loads(text), file, "nothing was written: correct the value and calibrate again")
    return text


def for_serving(folder: Path | str, binding: Binding) -> Calibration | None:
    """Return the calibration whose binding equals that of the served adapter; None without a file.

    Raises:
        NotCalibratedError: if every calibration is for other contents or other dtypes; the message names them.
        AdapterError: if the file cannot be read, or was edited.
    """
    calibrations = read_calibrations(folder)
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
        others = sorted(entry.binding.dtype for entry in own)
        command = f"blora calibrate {folder} {_calibrated_in(binding.dtype)} --data ..."
        raise NotCalibratedError(
            f"got calibration for dtype {', '.join(others)} in {file}, expected {binding.dtype}, in which the adapter "
            f"is served; serve it with {_engine_for(others[0], binding.dtype)}, run `{command}`, or start with "
            "--allow-uncalibrated"
        )
    for field in fields(Binding):
        found, expected = getattr(entry.binding, field.name), getattr(binding, field.name)
        if found != expected:
            raise AdapterError(
                f"got calibration for {field.name} {found} in {file}, expected {expected}, which is what "
                "the adapter with this digest has: the file was edited; restore it, or remove it and calibrate again"
            )
    return entry


def _engine_for(dtype: str, instead_of: str) -> str:
    """Return the flags of a server that serves in a calibration's dtype in place of another."""
    if dtype == VLLM:
        return "--engine vllm"
    return f"--engine torch --dtype {dtype}" if instead_of == VLLM else f"--dtype {dtype}"


def _calibrated_in(dtype: str) -> str:
    """Return the flags of `blora calibrate` for a dtype."""
    return "--engine-url URL" if dtype == VLLM else f"--dtype {dtype}"
