"""The tables of errors: complete, and without codes that nothing raises."""

import ast
import json
from pathlib import Path

import pytest

from blora import server
from blora.server import errors
from blora.server.errors import CODES, TYPES, QueueFullError, ServerError
from blora.server.http.responses import error_response
from blora.server.schemas.validation import _CODES

SOURCES = sorted(Path(server.__file__).parent.rglob("*.py"))
CLASSES = [
    thing
    for name in errors.__all__
    if isinstance(thing := getattr(errors, name), type) and issubclass(thing, ServerError)
]


def codes_in_sources() -> set[str]:
    """Return every code passed as code="...", and the codes of the classes and of validation."""
    passed = {
        keyword.value.value
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant)
    }
    return {str(code) for code in passed} | {cls.code for cls in CLASSES} | set(_CODES.values()) | {"invalid_type"}


def test_every_code_has_a_status_and_every_row_is_used() -> None:
    assert codes_in_sources() == CODES.keys()
    assert {code.status for code in CODES.values()} == TYPES.keys()


def test_an_error_with_a_code_that_does_not_exist_cannot_be_made() -> None:
    with pytest.raises(KeyError):
        ServerError("got a typing mistake", code="quue_full")


@pytest.mark.parametrize("status", TYPES)
def test_statuses_are_errors_and_types_say_which(status: int) -> None:
    assert 400 <= status < 600
    assert TYPES[status].endswith("_error")
    assert (status >= 500) == (TYPES[status] in {"server_error", "unavailable_error", "timeout_error"})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_has_a_row(cls: type[ServerError]) -> None:
    assert cls.code in CODES


def test_an_error_in_its_shape() -> None:
    response = error_response(QueueFullError("got a lot, expected less: wait", retry_after_s=7))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    assert json.loads(bytes(response.body)) == {
        "error": {
            "message": "got a lot, expected less: wait",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
    }
