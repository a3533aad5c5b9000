"""Reading of questions from JSONL, CSV or Parquet files, row by row."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from blora.errors import DataError
from blora.questions.columns import QUESTION_COLUMNS, check_mapped, no_question, renamed
from blora.questions.tables import Malformed, read_rows, typed
from blora.server.errors import InvalidRequestError

__all__ = ["QuestionRow", "question_of", "read_questions"]

# Columns of a row that become fields of the request; other columns are ignored, but for the policy of a logged request,
# without which withheld answers would go out. Training calls a prompt `question`.
ASKED = ("prompt", "messages", "choices")
READ = (*QUESTION_COLUMNS, "choices", "id")
MESSAGES = {
    "invalid_json": "This line is not JSON ({0}): write one JSON object per line.",
    "policy": "got a policy in a row that is not the one for all rows: leave it out of the row, and give it for all, "
    "as --min-confidence and the like, or policy= in Python",
    "conflict": "got question and {0}, expected one of them: remove the other, or say with --columns prompt=NAME which "
    "column holds the question",
    "repeated_header": "got the header again, expected a row: remove this line, as of a second file behind the first",
    "invalid_length": "got {0} cells, expected the header's {1}: put double quotes around cells that contain a comma",
}


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


def read_questions(
    file: Path, columns: Mapping[str, str] | None = None, policy: Mapping[str, Any] | None = None
) -> Iterator[QuestionRow]:
    """Read the question of each row.

    In formats that hold only text, `choices` may be separated by |, and `choices` and `messages` may be JSON.

    Args:
        file: the file.
        columns: our column names, mapped to the file's own names. The file may lack columns that are not read, such as
            the label.
        policy: as of `question_of`.

    Raises:
        ConfigError: if a key of `columns` is not one of our column names.
        DataError: if the file cannot be read, see `blora.questions.tables.read_rows`, has no question column, or lacks
            a mapped column.
    """
    columns = columns or {}
    check_mapped(columns)
    for _, row in read_rows(file, partial(_check_columns, file, columns)):
        if isinstance(row, Malformed):
            own = renamed(row.first, columns).get("id")
            yield _unusable(MESSAGES[row.code].format(*row.found), code=row.code, own=own)
        else:
            yield question_of(renamed(row, columns) if isinstance(row, Mapping) else row, policy)


def question_of(row: object, policy: Mapping[str, Any] | None = None) -> QuestionRow:
    """Return what is asked in a row, or why nothing can be.

    Args:
        row: the row under our column names.
        policy: the policy for all rows, from which a row's own must not differ; None for none.
    """
    if not isinstance(row, Mapping):
        return _unusable(f"got {type(row).__name__}, expected a JSON object", code="invalid_type")
    if not set(QUESTION_COLUMNS) & set(row):
        return _unusable(no_question(row), code="missing", own=row.get("id"))
    own = _policy_in(row)
    if own is not None and own != dict(policy or {}):
        return _unusable(MESSAGES["policy"], code="conflict", own=row.get("id"))
    found = typed({name: row[name] for name in ASKED if name in row})
    if row.get("question") not in (None, ""):
        if others := {"prompt", "messages"} & found.keys():
            message = MESSAGES["conflict"].format(" and ".join(sorted(others)))
            return _unusable(message, code="conflict", own=row.get("id"))
        found["prompt"] = row["question"]
    if isinstance(choices := found.get("choices"), Mapping) and "text" in choices:  # ARC's format
        found["choices"] = choices["text"]
    return QuestionRow(found, row.get("id"))


def _policy_in(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the policy of a logged request, which a table may hold as text or with empty fields; None for no policy.

    Another value, such as the number of an insurance policy, is the user's own.
    """
    own = row.get("policy")
    if isinstance(own, str):
        with suppress(ValueError, RecursionError):
            own = json.loads(own)
    return {name: value for name, value in own.items() if value is not None} if isinstance(own, Mapping) else None


def _check_columns(file: Path, columns: Mapping[str, str], _: str, found: Collection[str]) -> None:
    """Raise DataError if a mapped column is not among those that were found, or none of them is for the question."""
    if missing := [theirs for ours, theirs in columns.items() if ours in READ and theirs not in found]:
        raise DataError(
            f"{file}: got the columns {', '.join(found)}, expected {', '.join(missing)}, which --columns names: "
            "correct the name"
        )
    if not set(QUESTION_COLUMNS) & set(renamed(dict.fromkeys(found), columns)):
        raise DataError(f"{file}: {no_question(found)}, or say with --columns prompt=NAME which one holds it")


def _unusable(message: str, *, code: str, own: object = None) -> QuestionRow:
    """Return a row with an error and the row's own id."""
    return QuestionRow(id=own, error=InvalidRequestError(message, code=code))
