"""Rows from a file, the hub, or a table in memory; `training/rows/examples.py` interprets them.

Files must use our column names or map them. Hub data sets and tables in memory are adapted: if no column holds a
question, `text` becomes the prompt, and numeric labels with names (ClassLabel) become these names.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from blora.errors import DataError
from blora.questions.columns import QUESTION_COLUMNS, check_mapped, is_request, no_question, renamed
from blora.questions.tables import FORMATS, Malformed, check_names, read_rows, typed

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame as PandasFrame
    from polars import DataFrame as PolarsFrame

__all__ = ["Frame", "Rows", "Table", "is_row", "read_table", "records"]

Frame: TypeAlias = Union["PandasFrame", "PolarsFrame"]
Rows: TypeAlias = Union[str, PathLike[str], Iterable[Mapping[str, Any]], Frame, "Dataset"]
Place: TypeAlias = tuple[str, dict[str, Any] | str]  # the place of a row, and the row or the error in it

MESSAGES = {
    "invalid_json": "this line is not JSON ({0}); write one JSON object per line",
    "invalid_length": "got {0} columns, expected the header's {1}",
    "repeated_header": "got the header again, expected a row: remove this line, as of a second file behind the first",
}
# Usual name of the text column in published data sets.
TEXT_COLUMN = "text"
TEMPLATE_ADVICE = (
    "or say with --columns prompt=NAME which one holds it; "
    'a question is asked as "Question: ... Answer:" unless --template says otherwise, a prompt as it is'
)
MAPPING_ADVICE = "or say which column holds it, as in columns={'prompt': 'review'}"
EXPECTED = (
    "expected a .jsonl, .csv or .parquet file, a hub data set, a list of dicts, a pandas or polars DataFrame, or a "
    "datasets.Dataset"
)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under our column names, whose values are not checked yet.

    Attributes:
        name: name of the source, for records and messages.
        rows: for each row its place, and the row or an error message.
        untyped: whether every value is text, as in CSV.
        label_names: names of numeric labels (ClassLabel), in the order of the numbers; None for other labels.
    """

    name: str
    rows: list[Place]
    untyped: bool = False
    label_names: tuple[str, ...] | None = None


def read_table(source: Rows, *, split: str = "train", columns: Mapping[str, str] | None = None) -> Table:
    """Return the rows of any source.

    Args:
        source: a .jsonl, .csv or .parquet file; a hub data set, as owner/name or owner/name:config; a list of dicts; a
            pandas or polars DataFrame; or a `datasets.Dataset`.
        split: the split of a hub data set to load.
        columns: our column names, mapped to the source's own names, as in {"prompt": "review"}.

    Raises:
        DataError: if the source cannot be read, is of another kind, or has no column for the question.
        ConfigError: if a key of `columns` is not one of our column names.
    """
    columns = columns or {}
    check_mapped(columns)
    if not isinstance(source, str | PathLike):
        return _table_in_memory(source, columns)
    path = Path(source)
    if path.suffix.lower() in FORMATS or path.is_file():  # of another file `read_rows` says which are read
        return Table(path.name, list(_file_rows(path, columns)), untyped=path.suffix.lower() == ".csv")
    return _hub_table(str(source), split, columns)


def _file_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Place]:
    def check(where: str, found: Collection[str]) -> None:
        _check_columns(_renamed(dict.fromkeys(found), columns, where), where, TEMPLATE_ADVICE)

    for where, row in read_rows(path, check):
        if isinstance(row, Malformed):
            yield where, MESSAGES[row.code].format(*row.found)
        elif not isinstance(row, dict):
            yield where, f"got {type(row).__name__}, expected a JSON object"
        else:
            own = _renamed(row, columns, where, known=True)
            yield where, typed(own) if path.suffix.lower() == ".csv" else own


def _hub_table(source: str, split: str, columns: Mapping[str, str]) -> Table:
    from datasets import load_dataset  # slow to import, and only the hub needs it

    name, _, config = source.partition(":")
    try:
        rows = load_dataset(name, config or None, split=split)
    except Exception as exc:  # every failure of the library, network included
        raise DataError(
            f"got data set {source!r}, which is neither a {', '.join(FORMATS)} file nor a data set that loads ({exc})"
        ) from exc
    place = f"{source}/{split}"
    return _mapped(place, ((f"{place}:{number}", row) for number, row in enumerate(rows, start=1)), columns, rows)


def records(source: Any) -> Iterator[Any]:
    """Yield the rows of a table in memory, those of a frame as dicts, with NumPy's and pandas' values as Python's.

    Raises:
        DataError: if a frame has a column twice.
    """
    kind = _kind(source)
    if kind == "pandas.DataFrame":
        check_names(list(source.columns), "DataFrame")
        source = source.astype(object).where(source.notna(), None).to_dict("records")
    elif kind == "polars.DataFrame":
        source = source.iter_rows(named=True)
    return map(_plain, source)


def _kind(source: object) -> str:
    """Return a table's kind by the name of its class, so that no library is imported."""
    return f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}"


def _table_in_memory(source: Any, columns: Mapping[str, str]) -> Table:
    if _kind(source) in ("datasets.DatasetDict", "datasets.IterableDatasetDict"):
        raise DataError(f"got the splits {', '.join(source)}, expected one of them; pass rows[{next(iter(source))!r}]")
    if not isinstance(source, Iterable) or isinstance(source, Mapping | bytes):
        raise DataError(f"got rows of type {type(source).__name__}, {EXPECTED}")
    name = "rows" if isinstance(source, list | tuple) else type(source).__name__
    rows = ((f"{name}[{number}]", row) for number, row in enumerate(records(source)))
    return _mapped(name, rows, columns, source)


def _mapped(name: str, rows: Iterable[tuple[str, Any]], columns: Mapping[str, str], source: Any) -> Table:
    """Return a table under our column names, by the given mapping and by the column names and features of `source`."""
    names: tuple[str, ...] | None = None
    field = "label_text" if "label_text" in columns else "label"
    found: list[Place] = []
    for where, row in rows:
        if not isinstance(row, Mapping):
            found.append((where, f"got {type(row).__name__}, expected a dict; {EXPECTED}"))
            continue
        if not found:
            if TEXT_COLUMN in row and not set(QUESTION_COLUMNS) & {*row, *columns}:
                columns = {**columns, "prompt": TEXT_COLUMN}
            names = _label_names(source, columns.get(field, field))
        own = _renamed(row, columns, where, known=bool(found))
        if not found:
            _check_columns(own, where, MAPPING_ADVICE)
        if names is not None and type(own.get(field)) is int:
            number = own[field]
            own[field] = names[number] if 0 <= number < len(names) else None  # -1 is a row without a label
        found.append((where, own))
    return Table(name, found, label_names=names)


def _label_names(source: Any, column: str) -> tuple[str, ...] | None:
    """Return the class names of a ClassLabel column of a `datasets.Dataset`; None for any other column."""
    feature = (getattr(source, "features", None) or {}).get(column)
    names = getattr(feature, "names", None)
    return tuple(names) if isinstance(names, list) else None


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str], where: str, *, known: bool = False) -> dict[str, Any]:
    """Return a row under our column names.

    Raises:
        DataError: if a mapped column is missing and the columns are not `known` to be right.
    """
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing and not known:
        raise DataError(
            f"{where}: got the columns {', '.join(map(str, row))}, expected {', '.join(missing)}, which `columns` "
            "names; correct the name"
        )
    return {str(name): value for name, value in renamed(row, columns).items()}


def is_row(value: Any) -> bool:
    """Return whether a value is a row of a pandas DataFrame: a Series with a name of a question's column."""
    return _kind(value) == "pandas.Series" and not set(QUESTION_COLUMNS).isdisjoint(value.index)


def _plain(value: Any) -> Any:
    """Return a value in JSON's types: lists for tuples and NumPy's arrays, NumPy's numbers, and rows of a DataFrame."""
    if _kind(value) == "pandas.NAType":
        return None
    if is_row(value):
        value = value.astype(object).where(value.notna(), None).to_dict()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _check_columns(columns: Collection[str], where: str, advice: str) -> None:
    """Refuse a source whose first row has no column for the question: one error instead of one for every row."""
    if not set(QUESTION_COLUMNS) & set(columns) and not is_request(columns):
        raise DataError(f"{where}: {no_question(columns)}, {advice}")
