"""Rows of JSONL, CSV and Parquet files, read one by one."""

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from blora.errors import DataError
from blora.questions.columns import choices_of

__all__ = ["FORMATS", "Malformed", "check_names", "read_rows", "typed"]

# Bound on the memory that one CSV cell takes, a thousand times that of Python's csv.
MOST_CELL_CHARACTERS = 2**27


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that cannot be read.

    Attributes:
        code: the kind of error: a line that is not JSON or names a field twice, a CSV row with more or fewer cells than
            the header, or one that is the header again.
        found: the parser's message; or the numbers of cells in the row and in the header.
        first: the first cell under its column's name, as a comma without quotes moves the cells behind it.
    """

    code: Literal["invalid_json", "invalid_length", "repeated_header"]
    found: tuple[object, ...]
    first: Mapping[str, str] = field(default_factory=dict)


Check: TypeAlias = Callable[[str, Collection[str]], None]


def read_rows(file: Path, check: Check) -> Iterator[tuple[str, object]]:
    """Read the rows of a file.

    Args:
        file: a file whose name ends in one of `FORMATS`.
        check: called before the first row with the place and the names of the columns, which in JSONL are those of the
            first row; not called if that row is no object.

    Returns:
        the place and the value of each row: a dict, another JSON value, or `Malformed`.

    Raises:
        DataError: if the file cannot be read in the format of its suffix, or a column of it comes twice.
    """
    read = FORMATS.get(file.suffix.lower())
    if read is None:
        raise DataError(
            f"got {file}, expected a name that ends in {', '.join(FORMATS)}: save the file in one of these formats"
        )
    try:
        yield from read(file, check)
    except OSError as exc:
        if exc.errno is None:  # raised by pyarrow for the contents
            raise DataError(f"{file} cannot be read as a {file.suffix} file: {exc}") from exc
        raise DataError(f"data file {file} cannot be read ({exc.strerror or exc}); check the path") from exc
    except UnicodeDecodeError as exc:
        with file.open("rb") as lines:
            wrong = next(n for n, line in enumerate(lines, start=1) if line.decode(errors="replace").encode() != line)
        raise DataError(
            f"{file}:{wrong}: {file.name} cannot be read as a {file.suffix} file: got bytes that are "
            "not UTF-8; save the file as UTF-8"
        ) from exc


def typed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of texts without empty cells, choices and messages parsed as JSON, or choices separated by |.

    >>> typed({"prompt": "Which?", "choices": "[draft]|final", "id": ""})
    {'prompt': 'Which?', 'choices': ['[draft]', 'final']}
    """
    found = {name: value for name, value in row.items() if value not in (None, "")}
    for name in {"choices", "messages"} & found.keys():
        if isinstance(text := found[name], str) and text.lstrip().startswith("["):
            with suppress(ValueError, RecursionError):  # stays text
                found[name] = json.loads(text)
    if isinstance(text := found.get("choices"), str):
        first, *others = choices_of(text)
        # A bracket around the separator, as in [ice|fire], is meant as JSON: the text remains, and is refused.
        if not (others and first.startswith("[") and "]" not in first and others[-1].endswith("]")):
            found["choices"] = [first, *others]
    return found


def _json_rows(file: Path, check: Check) -> Iterator[tuple[str, object]]:
    checked = False
    with file.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as exc:
                row = Malformed("invalid_json", (exc,))
            if isinstance(row, dict) and not checked:
                check(f"{file}:{number}", row)
            checked = True  # if the first line is malformed, each later line reports its own error
            yield f"{file}:{number}", row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, of which Python would keep the last of two fields of one name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the field {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _csv_rows(file: Path, check: Check) -> Iterator[tuple[str, object]]:
    csv.field_size_limit(MOST_CELL_CHARACTERS)
    header: list[str] = []
    first_line = 1  # of the row being read, which may span several
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            for cells in reader:
                where, first_line = f"{file}:{first_line}", reader.line_num + 1
                if not cells:
                    continue  # a blank line
                if not header:
                    header = cells
                    _check_header(header, where)
                    check(where, header)
                elif cells == header and len(header) > 1:
                    yield where, Malformed("repeated_header", ())
                elif len(cells) != len(header):
                    yield where, Malformed("invalid_length", (len(cells), len(header)), {header[0]: cells[0]})
                else:
                    yield where, dict(zip(header, cells, strict=True))
        except csv.Error as exc:
            raise DataError(
                f"{file}:{first_line}: this row is not CSV ({exc}): close each quote, and double the quotes within a "
                "quoted cell"
            ) from exc


def _check_header(header: list[str], where: str) -> None:
    """Raise DataError if the header of a CSV file is one cell with another separator, or names a column twice."""
    if len(header) == 1 and (other := next((one for one in (";", "\t", "|") if one in header[0]), None)):
        raise DataError(
            f"{where}: got columns that are separated by {other!r}, expected commas: save the file as CSV with commas"
        )
    check_names(header, where)


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse a table that has a column twice.

    Raises:
        DataError: if it has.
    """
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise DataError(f"{where}: got the column {twice[0]!r} twice, expected it once: rename one of them")


def _parquet_rows(file: Path, check: Check) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as exc:
        raise DataError(f"Reading {file} needs pyarrow: pip install pyarrow") from exc
    try:
        with ParquetFile(file) as table:
            check_names(table.schema_arrow.names, str(file))
            check(str(file), table.schema_arrow.names)
            rows = (row for batch in table.iter_batches(batch_size=256) for row in batch.to_pylist())
            yield from ((f"{file}:{number}", row) for number, row in enumerate(rows, start=1))
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as exc:
        raise DataError(f"{file} cannot be read as a .parquet file: {exc}") from exc


FORMATS: dict[str, Callable[[Path, Check], Iterator[tuple[str, object]]]] = {
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
