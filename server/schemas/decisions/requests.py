"""Bodies of POST /v1/decisions, in OpenAI's shape, with two fields of our own.

The items of `input` and `questions` are validated one at a time, by the dialect, so that an error names the path of the
first wrong value and a long body takes bounded time.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, SkipValidation, field_validator
from pydantic_core import PydanticCustomError

from blora.config import MOST_CHOICES
from blora.server.schemas.decisions.input import Identifier, InputItem, InputJson, InstructionsText
from blora.server.schemas.requests import NonEmpty, Policy, Request, check_different, seen

__all__ = [
    "MOST_QUESTIONS",
    "ChoiceQuestion",
    "DecisionQuestion",
    "DecisionsRequest",
    "PredicateQuestion",
    "ScoreQuestion",
    "as_text",
]

MOST_QUESTIONS = 400
# Limit for the characters of a question's name.
MOST_NAME = 256


def _value(value: object) -> str | bool:
    """Return the value of a choice, which is a text or a boolean."""
    if isinstance(value, bool) or (isinstance(value, str) and seen(value)):
        return value
    if isinstance(value, str):
        raise PydanticCustomError("blank_choice", "A choice is blank: fill it or remove it.")
    raise PydanticCustomError("value_type", "Input should be a string or a boolean")


def as_text(content: Any) -> str:
    """Return a text as it is, and other JSON in its usual notation.

    >>> as_text({"subject": "Überweisung", "amounts": [1, 2]})
    '{"subject": "Überweisung", "amounts": [1, 2]}'

    Raises:
        PydanticCustomError: if a number is not finite, such as 1e999, which is parsed as infinity.
    """
    if isinstance(content, str):
        return content
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError as exc:
        raise PydanticCustomError("finite_number", "A number in this JSON is not finite: send a finite one.") from exc


class _Question(Request):
    instructions: SkipValidation[str | list[InstructionsText | InputJson]] = Field(
        description="What is asked of the input."
    )
    name: Annotated[str, Field(min_length=1, max_length=MOST_NAME)] | None = Field(
        default=None, description="The question's name, which its answer repeats."
    )


class PredicateQuestion(_Question):
    """Question whose answer is true or false."""

    type: Literal["predicate"]


class Choice(Request):
    """One choice; the text "true" and the boolean true are two values."""

    value: Annotated[str | bool, PlainValidator(_value, json_schema_input_type=str | bool)]
    description: str | None = None


class ChoiceQuestion(_Question):
    """Question whose answer is one of several values."""

    type: Literal["choice"]
    choices: list[Choice] = Field(min_length=2, max_length=MOST_CHOICES)

    @field_validator("choices")
    @classmethod
    def _all_different(cls, choices: list[Choice]) -> list[Choice]:
        check_different([choice.value for choice in choices], "value")
        return choices


class Level(Request):
    """One level of a score."""

    label: NonEmpty
    description: str | None = None


class ScoreQuestion(_Question):
    """Question whose answer is one of several levels, the lowest first."""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=2, max_length=MOST_CHOICES)

    @field_validator("levels")
    @classmethod
    def _all_different(cls, levels: list[Level]) -> list[Level]:
        check_different([level.label for level in levels], "label")
        return levels


class CacheOptions(Request):
    """Options for caching, which change nothing here."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


DecisionQuestion = PredicateQuestion | ChoiceQuestion | ScoreQuestion


class DecisionsRequest(Request):
    """Questions about one input."""

    model: NonEmpty = Field(
        description="The adapter that answers, as `adapter` of /v1/predict; adapters named MODEL.SOMETHING answer too."
    )
    input: SkipValidation[str | list[InputItem]] = Field(
        description="The text that the questions are about, or messages, calls and outputs of tools, which are read as "
        "one text."
    )
    questions: list[SkipValidation[DecisionQuestion]] = Field(min_length=1, max_length=MOST_QUESTIONS)
    prompt_cache_key: Identifier | None = Field(default=None, description="Accepted; changes nothing.")
    prompt_cache_options: CacheOptions | None = Field(default=None, description="Accepted; changes nothing.")
    safety_identifier: Identifier | None = Field(default=None, description="Accepted; changes nothing.")
    policy: Policy | None = Field(
        default=None, description="Ours: policy for abstention of all questions; the adapters' own by default."
    )
    refuse: bool | None = Field(
        default=None,
        description="Ours: whether an abstention is an answer of type `refusal`, without probabilities, or the full "
        "answer with `abstained: true`; by default the full answer, or as --refuse-abstentions says.",
    )
