"""Labels of rows, read as the index of the correct choice.

A row names its correct choice in one of these fields:

label         the index of a choice, from 0, or its text. A number (in CSV: digits) may be the index of one choice and
              the text of another. The other rows then decide, as numbers are either indices or texts in all rows of a
              data set. If the other rows do not decide, the row is refused. If some numbers can only be texts, and
              others can only be indices although choices of the row are numbers, the rarer ones are refused. With a
              fixed label set, one label in words makes all labels texts, and a number that is no choice is refused.
              Outside of CSV, digits in quotes are the text of a choice, unless those of another row are an index,
              because its choices have no numbers; then all such digits count as numbers.
label_index   the index, a whole number from 0
label_text    the text; label_index and label_text must agree if a row has both, and with a label that is the text of a
              choice; they take precedence over any other label
answerKey     ARC's format: the letter of the correct choice, where choices is {"text": [...], "label": [...]}, or its
              text; a number that is neither is refused, as ARC counts from 1; a label beside it must agree

A text names the choice that looks the same: outer white space, the Unicode form and zero-width characters do not count.
A number that is no choice's text counts as that of the only choice with its value, as a spreadsheet makes 1 of 01.
A boolean names the choice that says it in any case, as in true, True and TRUE.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from blora.config import MOST_CHOICES
from blora.errors import DataError
from blora.questions.columns import LABEL_COLUMNS
from blora.questions.spelling import seen
from blora.training.caveats import CLOSE, warn_of_odd_labels
from blora.training.rows.sources import Table

__all__ = ["Label", "RowError", "check_labelled", "is_missing", "label_set", "place_of", "read_label", "settle"]

REPORTED = 10  # choices named in a message
# Pairs of choices of which 0 and 1 usually name the second and the first, against their places.
AFFIRMED = (("true", "false"), ("yes", "no"), ("y", "n"))
FLOAT_ADVICE = "; pandas makes floats of whole numbers in a column with a gap: convert it, as with .astype('Int64')"


class RowError(Exception):
    """An error in one row; the message does not name the place of the row."""


@dataclass(frozen=True, slots=True)
class Label:
    """The two readings of a label: the choice with this index and the choice with this text, None if there is none.

    Attributes:
        index: the choice with this index.
        text: the choice with this text.
        choices: the row's choices.
        in_words: whether the label is text other than a number.
        in_quotes: whether the label is digits in quotes, where numbers need none, and not another spelling of a choice.
    """

    index: int | None
    text: int | None
    choices: Sequence[str]
    in_words: bool = False
    in_quotes: bool = False

    @property
    def is_doubtful_index(self) -> bool:
        """Return whether the label is no choice's text although choices are numbers: a text by mistake, or an index."""
        return self.text is None and any(map(_is_digits, self.choices))


def read_label(row: Mapping[str, Any], choices: Sequence[str], letters: Sequence[str], *, untyped: bool) -> Label:
    """Return the possible meanings of a row's label.

    Args:
        row: the row under our column names.
        choices: the row's choices.
        letters: the letters of the choices in ARC's format, otherwise empty.
        untyped: whether numbers arrive as text, as in CSV.

    Raises:
        RowError: if the label is missing or matches no choice.
    """
    given = {name: value if name == "label_index" else _spoken(value, choices) for name, value in _given(row).items()}
    if not given:
        raise RowError("got no label, expected the index or the text of the right choice")
    if "label_index" in given or "label_text" in given:
        explicit = _explicit(given, choices, untyped=untyped)
        label = given.get("label")
        if isinstance(label, str) and not _is_digits(label) and place_of(label, choices) not in (explicit, None):
            raise RowError(
                f"got label {label!r:.80}, and {choices[explicit]!r} by label_text or label_index, expected the same "
                "choice: name the column that counts (--columns label=NAME, or columns= in Python), or correct the row"
            )
        return Label(explicit, explicit, choices)
    if "label" in given:
        found = _index_or_text(given["label"], choices, (choices, letters), untyped=untyped)
        if found.text is None and row.get("choices") is None and _is_affirmed(choices):
            raise RowError(
                f"got label {found.index}, which is {choices[found.index or 0]!r} by its place and the other one by "
                f"custom, expected one of {_listed(choices)}: write it in words, or name the column label_index if it "
                "is a place"
            )
        key = place_of(given["answerKey"], (*letters, *choices)) if "answerKey" in given else None
        if key is not None and (place := key % len(choices)) not in (found.index, found.text):
            raise RowError(
                f"got label {given['label']!r:.80}, and {choices[place]!r} by answerKey, expected the same choice: "
                "name the column that counts label_text or label_index, or correct the row"
            )
        return found
    key, names = given["answerKey"], letters or choices
    if place_of(key, (*letters, *choices)) is None:
        raise RowError(
            f"got answerKey {key!r:.80}, expected one of {_listed(names)}{_near(key, names)}; send a position as "
            'label_index, counted from 0, or the letters beside the choices, as {"text": [...], "label": [...]}'
        )
    return _index_or_text(key, choices, (letters, choices), untyped=untyped)


def is_missing(label: object) -> bool:
    """Return whether a label is an empty cell: None, NaN or a blank text."""
    if isinstance(label, str):
        return not seen(label)
    return label is None or (isinstance(label, float) and math.isnan(label))


def check_labelled(table: Table) -> None:
    """Refuse a table in which no row has a label: one error instead of one for every row.

    Raises:
        DataError: if there are rows, and none has a label.
    """
    rows = [row for _, row in table.rows if isinstance(row, dict)]
    if rows and not any(map(_given, rows)):
        raise DataError(
            f"got no label in any row of {table.name}, with the columns {', '.join(rows[0])}, expected one each: "
            "name the column of the labels (--columns label=NAME, or columns= in Python)"
        )


def label_set(table: Table) -> tuple[str, ...] | None:
    """Return the label set of rows without choices: the class names of their labels, or the distinct texts, sorted.

    The result is None if any row has choices, or there are no rows.

    Raises:
        DataError: if no row has a label, a label is neither text nor has a class name, or the number of labels is not a
            permitted number of choices.
    """
    rows = [row for _, row in table.rows if isinstance(row, dict)]
    if any(row.get("choices") is not None for row in rows):
        return None
    found, given = table.label_names, []
    if found is None:
        check_labelled(table)
        if not rows:
            return None
        given = [name for fields in map(_given, rows) if (name := _name_in(fields, table)) is not None]
        found = tuple(sorted(set(given)))
    if not 2 <= len(found) <= MOST_CHOICES:
        raise DataError(
            f"got {len(found)} different labels in {table.name}, expected 2 to {MOST_CHOICES}; check the labels, or "
            "name the choices (--choices, or choices= in Python)"
        )
    warn_of_odd_labels(given)  # whose time grows with the square of their number
    return found


def _name_in(fields: Mapping[str, Any], table: Table) -> str | None:
    """Return a row's label, which is the name of a choice; None without a label.

    Raises:
        DataError: if it is no text, or may be an index.
    """
    field = next((field for field in ("label_text", "label", *LABEL_COLUMNS) if field in fields), None)
    if field is None:
        return None
    label = fields[field]
    is_name = isinstance(label, bool | str) and not (table.untyped and _is_digits(label))
    if (field == "label" and is_name) or (field == "label_text" and isinstance(label, int | str)):
        return str(label)
    raise DataError(
        f"got {field} {label!r:.80} and no choices in {table.name}, expected texts or the choices too, because a "
        "number may be the index of a choice: name the choices (--choices, or choices= in Python), or tell that the "
        "labels are texts (--columns label_text=NAME)"
    )


def settle(labels: Sequence[Label], *, fixed: bool = False) -> list[int | str]:
    """Return the choice of each label of a data set, or the reason why the label is refused.

    Args:
        labels: the labels of all rows.
        fixed: whether all rows have the same choices by a fixed label set.

    >>> digits = ["1", "2", "3", "4"]
    >>> settle([Label(2, 1, digits), Label(0, None, digits)])  # the second is not a text, so numbers are indices
    [2, 0]
    >>> settle([Label(2, 1, digits), Label(None, 3, digits)])
    [1, 3]
    """
    labels = _read_as_texts(labels)
    n_texts = sum(label.index is None for label in labels)
    n_indices = sum(label.text is None for label in labels)
    n_doubtful = sum(label.is_doubtful_index for label in labels)
    are_texts = 0 < n_texts >= n_doubtful
    # Where both kinds occur and the choices are numbers, one kind is refused, and the other rows need no message.
    decided = (n_texts > 0) != (n_indices > 0) or (n_texts > 0 and n_doubtful > 0)
    # A column of names has no indices.
    are_names = fixed and any(label.in_words for label in labels)

    def meant(label: Label) -> int | str:
        index, text, choices = label.index, label.text, label.choices
        if are_names:
            return text if text is not None else _refused(str(index), f"one of {_listed(choices)}", "texts")
        if index is None:
            assert text is not None
            return text if are_texts else _refused(choices[text], f"an index from 0 to {len(choices) - 1}", "indices")
        if text is None:
            wrong = are_texts and label.is_doubtful_index
            return _refused(str(index), f"one of {_listed(choices)}", "texts") if wrong else index
        if index == text or decided:
            return text if are_texts else index
        return (
            f"got label {index}, which is the index of {choices[index]!r} and also stands for {choices[text]!r}, and "
            "the other rows do not say which is meant; expected label_index or label_text"
        )

    return [meant(label) for label in labels]


def _read_as_texts(labels: Sequence[Label]) -> Sequence[Label]:
    """Return the labels with digits in quotes as texts alone, unless such digits can only be an index in some row."""
    if any(label.in_quotes and label.text is None and not label.is_doubtful_index for label in labels):
        return labels
    return [replace(label, index=None) if label.in_quotes and label.text is not None else label for label in labels]


def _refused(label: str, expected: str, kind: str) -> str:
    return f"got label {label!r}, expected {expected}, as labels of other rows can only be {kind}; correct the label"


def _explicit(given: Mapping[str, Any], choices: Sequence[str], *, untyped: bool) -> int:
    index = text = None
    if (value := given.get("label_index")) is not None:
        index = int(value) if untyped and _is_digits(value) else value
        if not _is_number(index):
            raise RowError(f"got label_index {value!r:.80}, expected the index of the right choice")
        _check_range("label_index", index, choices)
    if (value := given.get("label_text")) is not None:
        text = place_of(value, choices) if isinstance(value, str) or _is_number(value) else None
        if text is None:
            raise RowError(f"got label_text {value!r:.80}, expected one of {_listed(choices)}{_near(value, choices)}")
    if index is not None and text is not None and index != text:
        raise RowError(
            f"got label_index {index}, which is {choices[index]!r}, and label_text {choices[text]!r}; "
            "expected the same choice, or one of the two"
        )
    found = index if index is not None else text
    assert found is not None  # one of the two was given
    return found


def _index_or_text(value: Any, choices: Sequence[str], namings: Sequence[Sequence[str]], *, untyped: bool) -> Label:
    """Return the possible meanings of a value: a number as an index, and any value by the first naming that has it."""
    in_quotes = not untyped and _is_digits(value)
    named = next((place for names in namings if (place := place_of(value, names)) is not None), None)
    if isinstance(value, str):
        if named is not None and not _is_digits(value):
            return Label(named, named, choices, in_words=True)
        if not _is_digits(value):
            expected = list(namings[0] or namings[1])
            raise RowError(
                f"got label {value[:80]!r}, expected one of {_listed(expected)} or an index{_near(value, expected)}"
            )
        value = int(value)
    if not _is_number(value):
        advice = FLOAT_ADVICE if isinstance(value, float) else ""
        raise RowError(f"got label {value!r:.80}, expected the index or the text of the right choice{advice}")
    if named is None:
        named = _of_value(value, choices)
        in_quotes = in_quotes and named is None
    if named is None:
        _check_range("label", value, choices)
    return Label(value if 0 <= value < len(choices) else None, named, choices, in_quotes=in_quotes)


def _of_value(number: int, choices: Sequence[str]) -> int | None:
    """Return the place of the one choice of digits that has the value of a number; None for none, or several."""
    places = [place for place, choice in enumerate(map(seen, choices)) if _is_digits(choice) and int(choice) == number]
    return places[0] if len(places) == 1 else None


def _given(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row that name its label, texts in the form in which they are compared."""
    found = {name: row[name] for name in LABEL_COLUMNS if not is_missing(row.get(name))}
    return {name: seen(value) if isinstance(value, str) else value for name, value in found.items()}


def _spoken(value: Any, choices: Sequence[str]) -> Any:
    """Return the choice that says a boolean; any other value as it is."""
    says = str(value).casefold()
    return next((choice for choice in choices if isinstance(value, bool) and seen(choice).casefold() == says), value)


def place_of(value: object, names: Sequence[str]) -> int | None:
    """Return the index of the name that looks like a value, which is in the form `seen`; None if none does."""
    text = str(value)
    if text not in names:
        names = list(map(seen, names))
    return names.index(text) if text in names else None


def _listed(choices: Sequence[str]) -> str:
    """Return the choices as a list for an error message, of many only the first ones."""
    more = len(choices) - REPORTED
    return f"{list(choices)!r}" if more <= 0 else f"{list(choices[:REPORTED])!r} and {more} more"


def _near(value: object, choices: Sequence[str]) -> str:
    """Return the question whether a choice that reads nearly like the value is meant; empty if none does."""
    folded = {choice.casefold(): choice for choice in choices}
    near = get_close_matches(str(value).casefold(), folded, 1, CLOSE)
    return f"; is {folded[near[0]]!r} meant?" if near else ""


def _is_affirmed(choices: Sequence[str]) -> bool:
    return tuple(seen(choice).casefold() for choice in choices) in AFFIRMED


def _check_range(field: str, index: int, choices: Sequence[str]) -> None:
    if not 0 <= index < len(choices):
        raise RowError(f"got {field} {index}, expected an index from 0 to {len(choices) - 1}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_digits(value: Any) -> bool:
    """Return whether a value is text of at most nine digits from 0 to 9."""
    return isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 9
