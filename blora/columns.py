"""The column names of a file of questions, and the message for a row without a question column."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches

__all__ = ["MOST_CELL_CHARACTERS", "QUESTION_COLUMNS", "is_request", "no_question"]

QUESTION_COLUMNS = ("question", "prompt", "messages")
OTHER_COLUMNS = ("choices", "label", "label_index", "label_text", "answerKey", "id")
# Bound on the memory that one CSV cell takes, a thousand times that of Python's csv.
MOST_CELL_CHARACTERS = 2**27
# Common names of text columns in other data sets.
USUAL_NAMES = ("text", "input", "query", "sentence", "content", "instruction", "body", "utterance", "ticket")


def is_request(columns: Collection[str]) -> bool:
    """Return whether a row with these columns is a request with several questions: see `blora.training.questions`."""
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
