"""Questions in the shape of `/v1/decisions`, from a file or from rows that are requests.

A row that is a request has an `input` and `questions`, each with its own label:

    {"input": "The app is down!", "questions": [
        {"type": "predicate", "name": "urgent", "instructions": "Must somebody act today?", "label": true},
        {"type": "choice", "name": "queue", "choices": [{"value": "bug"}, {"value": "billing"}], "label": "bug"},
        {"type": "score", "name": "mood", "levels": [{"label": "calm"}, {"label": "angry"}], "label": 1}]}

`as_plain` turns such rows into rows of one question each, which `blora.training.rows.examples` reads.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blora.config import AdapterConfig, QuestionConfig
from blora.config.question import PREDICATE_CHOICES
from blora.errors import ConfigError, DataError
from blora.questions.columns import is_request
from blora.questions.spelling import seen
from blora.questions.wording import choice_text, question_text
from blora.training.caveats import warn_of_left_out
from blora.training.rows.labels import RowError, is_missing, place_of
from blora.training.rows.sources import Table

__all__ = ["ABOUT", "DESCRIBED", "Question", "as_plain", "question_given", "question_of", "read_question"]

# Key of a plain row for its choices with their descriptions, where they are offered without.
DESCRIBED = "choices with descriptions"
# Key of a plain row for the input of the request that it is a question of.
ABOUT = "input of the request"
# Share of the questions of a training row whose choices are offered without their descriptions.
BARE = 0.25


@dataclass(frozen=True, slots=True)
class Question:
    """A question with fixed choices: true and false, values, or levels from the lowest to the highest."""

    config: QuestionConfig
    choices: tuple[str, ...]

    @classmethod
    def of(cls, config: AdapterConfig) -> "Question | None":
        """Return the question of an adapter, or None if it has no name."""
        if config.question is None:
            return None
        assert config.prompt.choices is not None  # `AdapterConfig` checks it
        return cls(config.question, config.prompt.choices)


def read_question(file: Path) -> Question:
    """Return the question in a JSON file, in the shape that a request to `/v1/decisions` sends.

    Raises:
        DataError: if the file cannot be read or holds no such question.
    """
    try:
        return question_of(json.loads(file.read_text(encoding="utf-8")))
    except OSError as exc:
        raise DataError(f"question file {file} cannot be read ({exc.strerror}); check the path") from exc
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{file}: got no JSON ({exc}), expected one question as a request sends it") from exc
    except RowError as exc:
        raise DataError(f"{file}: {exc}") from exc


def question_given(given: Mapping[str, Any]) -> Question:
    """Return a question in the shape that a request to `/v1/decisions` sends.

    Raises:
        DataError: if it is no such question.
    """
    try:
        return question_of(given)
    except RowError as exc:
        raise DataError(str(exc)) from exc


def question_of(given: Any, *, unnamed: str | None = None) -> Question:
    """Return a question as a request sends it; a label beside its fields is not read.

    Args:
        given: the question as parsed JSON.
        unnamed: name of a question without one; None if it needs one.

    Raises:
        RowError: if it is no question with a name, a type and two or more different choices or levels.
    """
    if not isinstance(given, Mapping):
        raise RowError(f"got the question {given!r:.80}, expected an object with type, name and instructions")
    kind, name, instructions = given.get("type"), given.get("name") or unnamed, given.get("instructions", "")
    if not isinstance(name, str) or not isinstance(instructions, str):
        raise RowError(f"got name {name!r:.80} and instructions {instructions!r:.80}, expected texts")
    if kind == "predicate":
        described: dict[str, str] = dict.fromkeys(PREDICATE_CHOICES, "")
    elif kind == "choice":
        described = _described(given.get("choices"), "choices", "value")
    elif kind == "score":
        described = _described(given.get("levels"), "levels", "label")
    else:
        raise RowError(f"got question type {kind!r:.80}, expected predicate, choice or score")
    descriptions = {value: text for value, text in described.items() if text}
    try:
        config = QuestionConfig(name=name, type=kind, instructions=instructions, descriptions=descriptions)
    except ConfigError as exc:
        raise RowError(str(exc)) from exc
    return Question(config, tuple(described))


def as_plain(table: Table, question: Question | None, *, training: bool = False) -> Table:
    """Return a table of rows with one question each; a row without `questions` is one already.

    Args:
        table: rows as read.
        question: the fixed question of the adapter, which is picked from rows that are requests by its name; rows
            without it are left out. None takes every question, with its instructions in the prompt and the
            descriptions in its choices.
        training: whether a quarter of the questions are offered without descriptions, so that an adapter learns to do
            without.
    """
    rng = random.Random(0)
    rows: list[tuple[str, dict[str, Any] | str]] = []
    n_requests = n_left_out = 0
    for where, row in table.rows:
        if isinstance(row, str):
            rows.append((where, row))
            continue
        try:
            if is_request(row):
                asked = list(_asked(where, row, question, rng if training else None))
                n_requests, n_left_out = n_requests + 1, n_left_out + (not asked)
                rows.extend(asked)
            else:
                rows.append((where, _labelled(row, question) if question is not None else row))
        except RowError as exc:
            rows.append((where, str(exc)))
    if question is not None and n_left_out:
        warn_of_left_out(n_left_out, n_requests, question.config.name)
    return replace(table, rows=rows)


def _asked(
    where: str, row: Mapping[str, Any], fixed: Question | None, rng: random.Random | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the questions of a request as plain rows, with their places."""
    text, questions = row.get("input"), row["questions"]
    if not isinstance(text, str) or not text.strip():
        raise RowError(f"got input {text!r:.80}, expected non-empty text")
    if not isinstance(questions, list) or not questions:
        raise RowError(f"got questions {questions!r:.80}, expected a list of one or more")
    for number, given in enumerate(questions):
        place = f"{where}, question {number}"
        if fixed is None:
            asked = question_of(given, unnamed="question")
            bare = rng is not None and rng.random() < BARE
            described = [choice_text(choice, asked.config.descriptions.get(choice, "")) for choice in asked.choices]
            prompt, label = question_text(text, asked.config.instructions), _index_of(given.get("label"), asked)
            plain: dict[str, Any] = {ABOUT: text, "prompt": prompt, "choices": described, "label_index": label}
            yield place, plain | ({"choices": list(asked.choices), DESCRIBED: described} if bare else {})
        elif isinstance(given, Mapping) and given.get("name") == fixed.config.name:
            asked = question_of(given)
            _check_same(asked, fixed)
            yield place, {"prompt": text, "label_text": asked.choices[_index_of(given.get("label"), asked)]}


def _check_same(asked: Question, fixed: Question) -> None:
    """Raise an error unless a row's question is the fixed one; only the order of a choice's values may differ."""
    ordered = fixed.config.type == "score"
    same = asked.choices == fixed.choices if ordered else sorted(asked.choices) == sorted(fixed.choices)
    if asked.config.type != fixed.config.type or not same:
        raise RowError(
            f"got the {asked.config.type} {asked.config.name!r} of {', '.join(asked.choices)}, expected the "
            f"{fixed.config.type} of {', '.join(fixed.choices)}, the same in all rows"
        )


def _labelled(row: dict[str, Any], question: Question) -> dict[str, Any]:
    """Return a plain row with the label of a predicate as text.

    Raises:
        RowError: if that label is neither true nor false; as positions of the choices, 0 would be true and 1 false.
    """
    label = row.get("label")
    if question.config.type != "predicate" or is_missing(label):
        return row
    text = seen(str(label)).lower() if isinstance(label, bool | str) else ""
    if text not in PREDICATE_CHOICES:
        raise _wrong_label(label, question)
    return row | {"label": text}


def _index_of(label: Any, question: Question) -> int:
    """Return the position of a question's label among its choices: of true or false, a value, or a level."""
    kind, choices = question.config.type, question.choices
    if kind == "predicate" and isinstance(label, bool):
        label = str(label).lower()
    if kind == "score" and type(label) is int and 0 <= label < len(choices):
        if choices[label] != str(label) in choices:
            raise RowError(
                f"got label {label} of the score {question.config.name!r}, which is the number of {choices[label]!r} "
                f"and also the level {str(label)!r}, expected the level as text"
            )
        return label
    place = place_of(seen(label), choices) if isinstance(label, str) else None
    if place is not None:
        return place
    raise _wrong_label(label, question)


def _wrong_label(label: Any, question: Question) -> RowError:
    kind, name = question.config.type, question.config.name
    expected = {"predicate": "true or false", "choice": "one of its values", "score": "a level or its number from 0"}
    return RowError(f"got label {label!r:.80} of the {kind} {name!r}, expected {expected[kind]}")


def _described(given: Any, field: str, key: str) -> dict[str, str]:
    """Return the choices or levels of a question with their descriptions, empty where there is none."""
    if not isinstance(given, list) or len(given) < 2:
        raise RowError(f"got {field} {given!r:.80}, expected a list of two or more")
    found: dict[str, str] = {}
    for one in given:
        value = one.get(key) if isinstance(one, Mapping) else None
        description = (one.get("description") or "") if isinstance(one, Mapping) else ""
        if not isinstance(value, str) or not value.strip() or not isinstance(description, str):
            raise RowError(f"got {one!r:.80} in {field}, expected a {key} of text, and its description if it has one")
        if value in found:
            raise RowError(f"got {value!r:.80} twice in {field}, expected different ones")
        found[value] = description
    return found
