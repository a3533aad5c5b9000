"""Items of the input of POST /v1/decisions, and the parts of their contents, in OpenAI's shape.

Contents are validated part by part, by the dialect, so that an error names the path of the first wrong value.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, SkipValidation

from blora.server.schemas.requests import NonEmpty, Request

__all__ = [
    "AssistantMessage",
    "CustomToolCall",
    "FunctionCall",
    "Identifier",
    "InputItem",
    "InputJson",
    "InputText",
    "InstructionMessage",
    "InstructionsText",
    "OutputText",
    "Refusal",
    "ToolOutput",
    "UserMessage",
]

# Limit for the characters of an identifier.
MOST_IDENTIFIER = 1024

Identifier = Annotated[str, Field(max_length=MOST_IDENTIFIER)]
ItemStatus = Literal["in_progress", "completed", "incomplete"] | None


# Parts of contents and instructions


class CacheBreakpoint(Request):
    """Mark of a prefix to cache, which changes nothing here."""

    mode: Literal["explicit"]


class InputText(Request):
    """Text of a message."""

    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = Field(default=None, description="Accepted; changes nothing.")


class InstructionsText(Request):
    """Text of a question's instructions."""

    type: Literal["input_text"]
    text: str


class InputJson(Request):
    """JSON that is read as text."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[Any]


class OutputText(Request):
    """Text that an assistant has written."""

    type: Literal["output_text"]
    text: str


class Refusal(Request):
    """Text by which an assistant has refused."""

    type: Literal["refusal"]
    refusal: str


# Items


class UserMessage(Request):
    """Message of a user."""

    type: Literal["message"] = "message"
    role: Literal["user"]
    content: SkipValidation[str | list[InputText | InputJson]]


class InstructionMessage(Request):
    """Message of a developer or a system."""

    type: Literal["message"] = "message"
    role: Literal["developer", "system"]
    content: SkipValidation[str | list[InputText]]


class AssistantMessage(Request):
    """Message of an assistant."""

    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: SkipValidation[str | list[OutputText | Refusal]]
    phase: Literal["commentary", "final_answer"] | None = None


class _Call(Request):
    call_id: NonEmpty = Field(max_length=MOST_IDENTIFIER)
    name: NonEmpty = Field(max_length=MOST_IDENTIFIER)
    id: Identifier | None = None
    namespace: Identifier | None = None
    status: ItemStatus = None


class FunctionCall(_Call):
    """Call of a function by an assistant."""

    type: Literal["function_call"]
    arguments: str


class CustomToolCall(_Call):
    """Call of a tool by an assistant."""

    type: Literal["custom_tool_call"]
    input: str


class ToolOutput(Request):
    """Output of a function or a tool, whose call comes earlier in the input."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: NonEmpty = Field(max_length=MOST_IDENTIFIER)
    output: SkipValidation[str | list[InputText]]
    id: Identifier | None = None
    status: ItemStatus = None


InputItem = UserMessage | InstructionMessage | AssistantMessage | FunctionCall | CustomToolCall | ToolOutput
