"""Translation of pydantic's errors; the table of bad requests covers them one by one."""

from typing import Any

import pytest

from blora.server.schemas.validation import invalid_request


def detail(kind: str, *loc: object, **more: Any) -> dict[str, Any]:
    return {"type": kind, "loc": loc, "msg": "Input should be better", "input": None, **more}


def test_the_first_problem_is_named_and_the_others_counted() -> None:
    error = invalid_request([detail("int_type", "body", "single", "seed"), detail("missing", "body", "single", "x")])
    assert (error.code, error.param) == ("invalid_type", "seed")
    assert str(error) == "got null, expected better: correct the field (the first of 2 problems)"


def test_a_kind_that_we_do_not_know_is_an_invalid_value() -> None:
    assert invalid_request([detail("brand_new", "body", "x")]).code == "invalid_value"


def test_a_field_may_be_called_like_a_part_of_the_scaffold() -> None:
    for name in ("batch", "single", "body"):
        for loc in ((name,), ("body", name), ("body", "single", name), ("body", "batch", name)):
            assert invalid_request([detail("extra_forbidden", *loc)]).param == name
    assert invalid_request([detail("missing", "body")]).param is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1.5, "1.5"),
        (10**400, "a very large number"),
        (float("inf"), "a very large number"),
        (float("nan"), "nan"),
        ("secret", "a string of 6 characters"),
        ([1, 2], "a list of 2 items"),
        ({"secret": 1}, "an object of 1 field"),
        ({}, "an object of 0 fields"),
    ],
)
def test_values_are_described_and_text_is_not_repeated(value: object, words: str) -> None:
    assert str(invalid_request([detail("x", "f", input=value)])).startswith(f"got {words}, expected")
