"""The column names of a file of questions, the flag that maps them, and the message for a row without a question."""

from argparse import ArgumentParser, ArgumentTypeError, _ArgumentGroup
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from blora.errors import ConfigError

__all__ = [
    "LABEL_COLUMNS",
    "QUESTION_COLUMNS",
    "add_columns",
    "check_mapped",
    "choices_of",
    "is_request",
    "no_question",
    "renamed",
]

QUESTION_COLUMNS = ("question", "prompt", "messages")
LABEL_COLUMNS = ("label", "label_index", "label_text", "answerKey")
OTHER_COLUMNS = ("choices", *LABEL_COLUMNS, "id")
# Common names of text columns in other data sets.
USUAL_NAMES = ("text", "input", "query", "sentence", "content", "instruction", "body", "utterance", "ticket")


def add_columns(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Add the flag that maps our column names to the names in the data."""
    parser.add_argument(
        "--columns",
        type=_mapping,
        metavar="NAME=THEIRS,...",
        help="names of blora's columns, each with the name of your column, as in prompt=text,label=intent",
    )


def check_mapped(columns: Iterable[str]) -> None:
    """Raise an error unless all mapped names are names of our columns.

    Raises:
        ConfigError: if one is not.
    """
    ours = (*QUESTION_COLUMNS, *OTHER_COLUMNS)
    if unknown := sorted(set(columns) - set(ours)):
        raise ConfigError(f"got columns for {', '.join(unknown)}, expected some of {', '.join(ours)}")


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row under our column names. A column that is named as the label, or as the question, is the only one.

    >>> renamed({"text": "Help!", "prompt": "old", "id": 3}, {"prompt": "text"})
    {'id': 3, 'prompt': 'Help!'}
    >>> renamed({"prompt": "Help!", "label_text": "bug", "gold": "billing"}, {"label": "gold"})
    {'prompt': 'Help!', 'label': 'billing'}
    >>> renamed({"note": "Help!", "prompt": "Call back."}, {"question": "note"})
    {'question': 'Help!'}
    """
    moved = {*columns, *columns.values()}
    for alike in (LABEL_COLUMNS, QUESTION_COLUMNS):
        if set(columns) & set(alike):
            moved.update(alike)
    own = {name: value for name, value in row.items() if name not in moved}
    return own | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def choices_of(text: str) -> tuple[str, ...]:
    """Return the choices in a text that separates them by |.

    >>> choices_of("bug | billing|other")
    ('bug', 'billing', 'other')
    """
    return tuple(choice.strip() for choice in text.split("|"))


def is_request(columns: Collection[str]) -> bool:
    """Return whether a row with these columns is a request with questions: see `blora.training.rows.questions`."""
    return "input" in columns and "questions" in columns


def no_question(columns: Iterable[str]) -> str:
    """Return the message for a row without a question column, with advice on which column to rename.

    >>> no_question(["text", "label"])
    'got the columns text, label, expected one of question, prompt, messages: rename text to question or prompt'
    """
    names = [str(column) for column in columns]
    meant = _meant([name for name in names if name not in OTHER_COLUMNS])
    return (
        f"got the columns {', '.join(names) or 'of an empty row'}, expected one of {', '.join(QUESTION_COLUMNS)}: "
        f"rename {meant or 'the one that holds the text'} to question or prompt"
    )


def _mapping(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(ours.strip() and theirs.strip() for ours, _, theirs in pairs):
        raise ArgumentTypeError(f"got {text!r}, expected NAME=THEIRS, separated by commas, as in prompt=text")
    names = [ours.strip() for ours, _, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ArgumentTypeError(f"got {', '.join(twice)} twice in {text!r}, expected one column for each name")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _meant(names: list[str]) -> str | None:
    """Return the name of the column that most likely holds the question, or None if no name suggests it."""
    plain = {name.strip().lower(): name for name in names}
    for known in (*QUESTION_COLUMNS, *USUAL_NAMES):
        if known in plain:
            return plain[known]
    for known in QUESTION_COLUMNS:
        if alike := get_close_matches(known, plain, n=1):
            return plain[alike[0]]
    return names[0] if len(names) == 1 else None
