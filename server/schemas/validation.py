"""Translation of pydantic's validation errors into one InvalidRequestError, without any text of the request."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from blora.server.errors import InvalidRequestError

__all__ = ["describe", "field_name", "invalid_request"]

# Codes of the errors that our own validators raise with our own messages.
_OWN_CODES = {
    "blank_choice": "empty_string",
    "duplicate_choices": "duplicate_choices",
    "empty_policy": "empty_policy",
    "no_criteria": "missing",
    "no_question": "missing",
    "not_text": "not_text",
    "one_outcome": "conflict",
    "target_and_thresholds": "conflict",
    "too_many_fields": "unknown_field",
    "two_questions": "conflict",
}
# Codes of pydantic's errors; other types that end in "_type" or "_parsing" become invalid_type.
_CODES = {
    "extra_forbidden": "unknown_field",
    "finite_number": "not_finite",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "json_invalid": "invalid_json",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "literal_error": "invalid_value",
    "missing": "missing",
    "string_too_long": "invalid_length",
    "string_too_short": "empty_string",
    "too_long": "invalid_length",
    "too_short": "invalid_length",
    **_OWN_CODES,
}
# Parts of a location that FastAPI and the union of body types add; they are not names of fields.
_SCAFFOLD = frozenset({"body", "single", "batch"})
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def invalid_request(details: Sequence[Mapping[str, Any]], *, at: str | None = None) -> InvalidRequestError:
    """Return the first validation error as an InvalidRequestError whose message counts the others.

    Args:
        details: the result of ValidationError.errors() or RequestValidationError.errors().
        at: path of the value that was validated, as in `questions[2]`, which the error's path then continues; None for
            the body.
    """
    first = details[0]
    code = _code(first["type"])
    message = _message(first)
    if len(details) > 1:
        message += f" (the first of {len(details)} problems)"
    if at is not None:
        param: str | None = at + "".join(map(_step, _location(first)))
    else:
        param = None if code == "invalid_json" else _param(first)
    return InvalidRequestError(message, code=code, param=param)


def _code(kind: str) -> str:
    if kind in _CODES:
        return _CODES[kind]
    return "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"


def _param(detail: Mapping[str, Any]) -> str | None:
    return ".".join(_name(name) for name in _location(detail)) or None


def _location(detail: Mapping[str, Any]) -> list[str | int]:
    """Return the names and numbers that lead to the wrong value."""
    location = list(detail["loc"])
    least = 1 if detail["type"] == "extra_forbidden" else 0  # then the last part is a field's name, whatever it is
    if location[:1] == ["body"] and len(location) > least:
        location = location[1:]
        if location[:1] and location[0] in _SCAFFOLD and len(location) > least:
            location = location[1:]
    own = detail.get("ctx", {}).get("param")
    if not own:
        return location
    return [*location, *(own if isinstance(own, tuple) else (own,))]


def _step(part: str | int) -> str:
    """Return the piece of a path that leads to an item of a list, or to a field."""
    return f"[{part}]" if isinstance(part, int) else f".{_name(part)}"


def field_name(name: str) -> str | None:
    """Return a name if it looks like a field's; None for another, which may hold anything, even a customer's text."""
    return name if _FIELD_NAME.fullmatch(name) else None


def _name(part: object) -> str:
    if isinstance(part, int):
        return str(part)
    return field_name(str(part)) or "(a name that is not a field's)"


def _message(detail: Mapping[str, Any]) -> str:
    context = detail.get("ctx", {})
    got = describe(detail.get("input"))
    match detail["type"]:
        case "json_invalid":
            return f"The body is not JSON ({context.get('error')}): send one JSON object in UTF-8, with finite numbers."
        case "missing" if _param(detail) is None:
            return "The request has no body: send one JSON object."
        case "missing":
            return "This field is missing: add it."
        case "extra_forbidden":
            return "There is no field of this name: remove it or correct its spelling."
        case "literal_error":
            return f"got {got}, expected {context['expected']}: send one of these"
        case "finite_number":
            return "This number is not finite: send a finite one."
        case "string_too_short":
            return "This text is empty: fill it, or leave the field out."
        case "string_too_long":
            return f"got {got}, expected at most {context['max_length']}: shorten it"
        case "too_short":
            return f"got {got}, expected at least {context['min_length']}: add some"
        case "too_long":
            return f"got {got}, expected at most {context['max_length']}: send fewer"
        case kind if kind in _OWN_CODES:
            return str(detail["msg"])
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"got {got}, expected an object: correct the field"
    expected = detail["msg"].removeprefix("Input should be ")
    if expected.startswith(("greater", "less")):
        expected = f"a number {expected}"
    return f"got {got}, expected {expected}: correct the field"


def describe(value: object) -> str:
    """Return a description of a value for an error message, without any text of it.

    >>> describe("secret"), describe([1, 2])
    ('a string of 6 characters', 'a list of 2 items')
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a very large number" if abs(value) >= 1e21 else repr(value)  # NaN is not large
        case str():
            return f"a string of {_counted(len(value), 'character')}"
        case list():
            return f"a list of {_counted(len(value), 'item')}"
        case dict():
            return f"an object of {_counted(len(value), 'field')}"
        case _:
            return "an object"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
