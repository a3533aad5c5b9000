"""Reading of questions from JSONL, CSV or Parquet files, row by row."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from blora.columns import MOST_CELL_CHARACTERS, QUESTION_COLUMNS, check_commas, check_mapped, no_question, renamed
from blora.errors import DataError
from blora.server.errors import InvalidRequestError

__all__ = ["QuestionRow", "question_of", "read_questions"]

# Columns of a row that become fields of the request; other columns are ignored. Training calls a prompt `question`.
ASKED = ("prompt", "messages", "choices")
READ = (*QUESTION_COLUMNS, "choices", "id")


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """One row of a file.

    Attributes:
        asked: the fields of a request, as in `POST /v1/predict`.
        id: the row's value in the column `id`; None without that column.
        error: the reason why the row cannot be used as a question; None if it can.
    """

    asked: dict[str, Any] = field(default_factory=dict)
    id: object = None
    error: InvalidRequestError | None = None


def read_questions(file: Path, columns: Mapping[str, str] | None = None) -> Iterator[QuestionRow]:
    """Read the question of each row.

    In formats that hold only text, `choices` may be separated by |, and `choices` and `messages` may be JSON.

    Args:
        file: the file.
        columns: our column names, mapped to the file's own names. The file may lack columns that are not read, such as
            the label.

    Raises:
        ConfigError: if a key of `columns` is not one of our column names.
        DataError: if the file cannot be read in the format of its suffix, has an unclosed quote, or its first row has
            no question column or lacks a mapped column.
    """
    columns = columns or {}
    check_mapped(columns)
    readers: dict[str, Callable[[Path], Iterator[object]]] = {
        ".jsonl": _json_lines,
        ".csv": partial(_csv, columns=columns),
        ".parquet": _parquet,
    }
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"got {file}, expected a name that ends in {', '.join(readers)}")
    try:
        for number, row in enumerate(reader(file)):
            if isinstance(row, QuestionRow):
                yield row
                continue
            if isinstance(row, Mapping):
                if number == 0:
                    _check_first(file, row, columns)
                row = renamed(row, columns)
            yield question_of(row)
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{file} cannot be read as a {file.suffix} file: {exc}") from exc


def question_of(row: object) -> QuestionRow:
    """Return what is asked in a row, or why nothing can be."""
    if not isinstance(row, Mapping):
        return _unusable(f"got {type(row).__name__}, expected a JSON object", code="invalid_type")
    if not set(QUESTION_COLUMNS) & set(row):
        return _unusable(no_question(row), code="missing", own=row.get("id"))
    found = {name: row[name] for name in ASKED if row.get(name) not in (None, "")}
    if "question" in row and not {"prompt", "messages"} & found.keys():
        found["prompt"] = row["question"]
    for name in ("choices", "messages"):
        if isinstance(found.get(name), str) and found[name].lstrip().startswith("["):
            found[name] = _parsed(found[name])
    if isinstance(found.get("choices"), str):
        found["choices"] = [choice.strip() for choice in found["choices"].split("|")]
    return QuestionRow(found, row.get("id"))


def _check_first(file: Path, row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Raise DataError if a file's first row lacks a mapped column or has no question column."""
    if missing := [theirs for ours, theirs in columns.items() if ours in READ and theirs not in row]:
        raise DataError(
            f"{file}: got the columns {', '.join(row)}, expected {', '.join(missing)}, which --columns names: correct "
            "the name"
        )
    if not set(QUESTION_COLUMNS) & set(renamed(row, columns)):
        raise DataError(f"{file}: {no_question(row)}, or say with --columns prompt=NAME which one holds it")


def _unusable(message: str, *, code: str, own: object = None) -> QuestionRow:
    """Return a row with an error and the row's own id."""
    return QuestionRow(id=own, error=InvalidRequestError(message, code=code))


def _parsed(text: str) -> object:
    """Return the value of a JSON text, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json_lines(file: Path) -> Iterator[object]:
    with file.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as exc:
                yield _unusable(f"This line is not JSON ({exc}): write one JSON object per line.", code="invalid_json")


def _csv(file: Path, columns: Mapping[str, str]) -> Iterator[object]:
    csv.field_size_limit(MOST_CELL_CHARACTERS)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        first_line = 1  # of the row being read, which may span several
        try:
            header = rows.fieldnames or ()
            check_commas(header, f"{file}:1")
            first_line = rows.line_num + 1
            for row in rows:
                first_line = rows.line_num + 1
                yield _too_long(row, header, columns) if None in row else row
        except csv.Error as exc:
            raise DataError(
                f"{file}:{first_line}: this row is not CSV ({exc}): close each quote, and double the quotes within a "
                "quoted cell"
            ) from exc


def _too_long(row: Mapping[str | None, Any], header: Sequence[str], columns: Mapping[str, str]) -> QuestionRow:
    """Return the error of a row whose cells beyond the header are listed under None.

    The row's id is read from the first column alone, since a comma without quotes moves the cells behind it.
    """
    n_cells = len(header) + len(row[None])
    return _unusable(
        f"got {n_cells} cells, expected the header's {len(header)}: put double quotes around cells that contain a "
        "comma",
        code="invalid_length",
        own=renamed({header[0]: row[header[0]]}, columns).get("id"),
    )


def _parquet(file: Path) -> Iterator[object]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as exc:
        raise DataError(f"Reading {file} needs pyarrow: pip install pyarrow") from exc
    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as exc:
        raise DataError(f"{file} cannot be read as a .parquet file: {exc}") from exc
