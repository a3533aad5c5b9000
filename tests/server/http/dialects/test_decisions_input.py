"""The items of an input as one text."""

from typing import Any

import pytest

from blora.server.errors import InvalidRequestError
from blora.server.http.dialects.decisions_input import input_text

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("items", "text", "has_roles"),
    [
        ([user("task"), user("")], "task", False),
        ([user(""), user("task"), user(" \n"), user("more")], "task\n\nmore", False),
        ([{"role": "system", "content": ""}, user("task")], "system: \n\nuser: task", True),
        ([user(""), {"role": "assistant", "content": "done"}], "user: \n\nassistant: done", True),
        ([user(""), CALL], "user: \n\ncall f: ", True),
    ],
)
def test_items_may_be_blank_beside_one_that_says_something(items: list[Any], text: str, has_roles: bool) -> None:
    assert input_text(items) == (text, has_roles)


@pytest.mark.parametrize(
    "items",
    [
        [user(""), user(" ")],
        [{"role": "assistant", "content": ""}],
        [{"role": "developer", "content": ""}, {"role": "user", "content": []}],
    ],
)
def test_an_input_of_blank_items_alone_is_refused(items: list[Any]) -> None:
    with pytest.raises(InvalidRequestError, match="empty, and so is that of each other item") as info:
        input_text(items)
    assert (info.value.code, info.value.param) == ("empty_string", "input[0].content")
