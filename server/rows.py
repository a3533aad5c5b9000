"""Questions in files: JSONL, CSV or Parquet, read a row at a time, however long they are."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blora.errors import DataError

__all__ = ["read_questions"]

# What of a row is asked; `question` is what training calls a prompt. Its other columns are somebody else's.
ASKED = ("prompt", "messages", "choices")


def read_questions(file: Path) -> Iterator[dict[str, Any]]:
    """The question of each row, as `POST /v1/predict` takes it; a row that is no object has none.

    Where a column holds text alone, choices may be one, separated by |, and choices and messages JSON.

    Raises:
        DataError: if the file cannot be read as what its name says.
    """
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"got {file}, expected a name that ends in {', '.join(readers)}")
    try:
        yield from map(_question, reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DataError(f"got {file}, which cannot be read ({exc}), expected a {file.suffix} file") from exc


def _question(row: object) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        return {}
    found = {name: row[name] for name in ASKED if row.get(name) not in (None, "")}
    if "question" in row and not {"prompt", "messages"} & found.keys():
        found["prompt"] = row["question"]
    for name in ("choices", "messages"):
        if isinstance(found.get(name), str) and found[name].lstrip().startswith("["):
            found[name] = _parsed(found[name])
    if isinstance(found.get("choices"), str):
        found["choices"] = [choice.strip() for choice in found["choices"].split("|")]
    return found


def _parsed(text: str) -> object:
    """What a text says in JSON, the text itself where it says nothing."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _json_lines(file: Path) -> Iterator[object]:
    with file.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if line.strip():
                yield _parsed(line)


def _csv(file: Path) -> Iterator[object]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet(file: Path) -> Iterator[object]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as exc:
        raise DataError(f"got {file} where pyarrow is not installed, expected it: pip install pyarrow") from exc
    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as exc:
        raise DataError(f"got {file}, which cannot be read ({exc}), expected a .parquet file") from exc
