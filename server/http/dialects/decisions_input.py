"""The input of POST /v1/decisions as one text.

A text is read as it is, and so are the messages of users alone, with a blank line between two. In any other input each
item begins with its role, as `user: ...`, `call NAME: ...` or `result of NAME: ...`. No row of a calibration has that
form, so that nothing is proved about answers to it.
"""

from typing import NamedTuple, cast

from blora.server.errors import InvalidRequestError
from blora.server.http.dialects.reading import read_content, read_kind, text_at
from blora.server.schemas.decisions.input import (
    AssistantMessage,
    CustomToolCall,
    FunctionCall,
    InputItem,
    InputJson,
    InputText,
    InstructionMessage,
    InstructionsText,
    OutputText,
    Refusal,
    ToolOutput,
    UserMessage,
)
from blora.server.schemas.requests import Request
from blora.server.schemas.validation import describe

__all__ = ["InputRead", "input_text", "instructions_text"]

# Most items of an input.
MOST_ITEMS = 1024

_ROLES: dict[str, type[Request]] = {
    "user": UserMessage,
    "developer": InstructionMessage,
    "system": InstructionMessage,
    "assistant": AssistantMessage,
}
_OTHERS: dict[str, type[Request]] = {
    "message": UserMessage,  # listed in errors; a message is read by its role
    "function_call": FunctionCall,
    "function_call_output": ToolOutput,
    "custom_tool_call": CustomToolCall,
    "custom_tool_call_output": ToolOutput,
}
_PARTS: dict[str, dict[str, type[Request]]] = {
    "user": {"input_text": InputText, "input_json": InputJson},
    "developer": {"input_text": InputText},
    "system": {"input_text": InputText},
    "assistant": {"output_text": OutputText, "refusal": Refusal},
}
_INSTRUCTIONS: dict[str, type[Request]] = {"input_text": InstructionsText, "input_json": InputJson}


class InputRead(NamedTuple):
    """The input of a request as one text, and whether its items begin with their roles."""

    text: str
    has_roles: bool


def input_text(given: object) -> InputRead:
    """Return the input of a request as one text.

    Args:
        given: the field `input`, as parsed from JSON.

    Raises:
        InvalidRequestError: naming the path of the first wrong value.
    """
    if isinstance(given, str):
        return InputRead(read_content(given, {}, _part_text, "input"), has_roles=False)
    if not isinstance(given, list) or not 1 <= len(given) <= MOST_ITEMS:
        raise InvalidRequestError(
            f"got {describe(given)}, expected a string or a list of 1 to {MOST_ITEMS} items: correct the field",
            code="invalid_length" if isinstance(given, list) else "invalid_type",
            param="input",
        )
    names: dict[str, str] = {}  # of calls, by their ids
    entries = [_entry(item, f"input[{index}]", names) for index, item in enumerate(given)]
    if all(role in _ROLES and not text.strip() for role, text in entries):  # a call says something by its name
        raise InvalidRequestError(
            "This text is empty, and so is that of each other item: fill one.",
            code="empty_string",
            param="input[0].content",
        )
    if {role for role, _ in entries} == {"user"}:
        return InputRead("\n\n".join(text for _, text in entries if text.strip()), has_roles=False)
    return InputRead("\n\n".join(f"{role}: {text}" for role, text in entries), has_roles=True)


def instructions_text(given: object, at: str) -> str:
    """Return the instructions of a question as one text.

    Args:
        given: the instructions, as parsed from JSON.
        at: their path in the request.

    Raises:
        InvalidRequestError: naming the path of the first wrong value.
    """
    return read_content(given, _INSTRUCTIONS, _part_text, at)


def _entry(item: object, at: str, names: dict[str, str]) -> tuple[str, str]:
    """Return the role of an item and its text; remember the names of calls."""
    is_message = isinstance(item, dict) and item.get("type", "message") == "message"
    read = cast(InputItem, read_kind(item, _ROLES, at, "role") if is_message else read_kind(item, _OTHERS, at))
    match read:
        case UserMessage() | InstructionMessage() | AssistantMessage():
            path = f"{at}.content"
            return read.role, read_content(read.content, _PARTS[read.role], _part_text, path, may_be_blank=True)
        case FunctionCall():
            names[read.call_id] = read.name
            return f"call {read.name}", read.arguments
        case CustomToolCall():
            names[read.call_id] = read.name
            return f"call {read.name}", read.input
        case ToolOutput():
            if read.call_id not in names:
                raise InvalidRequestError(
                    "No earlier item of the input is a call with this id: add the call, or leave its output out.",
                    code="invalid_value",
                    param=f"{at}.call_id",
                )
            text = read_content(read.output, _PARTS["system"], _part_text, f"{at}.output", may_be_blank=True)
            return f"result of {names[read.call_id]}", text


def _part_text(part: Request, at: str) -> str:
    match part:
        case InputJson():
            return text_at(part.data, f"{at}.data")
        case Refusal():
            return part.refusal
        case InputText() | InstructionsText() | OutputText():
            return part.text
    raise TypeError(f"{type(part).__name__} has no text")
