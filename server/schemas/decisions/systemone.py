"""Bodies and answers of POST /v1/systemone, in TypeSafe's shape, with fields of our own beside theirs.

The questions are validated one at a time, by the dialect, so that an error names the path of the first wrong value.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, SkipValidation, field_validator, model_validator
from pydantic_core import PydanticCustomError

from blora.config import MOST_CHOICES
from blora.server.schemas.decisions.answers import Own, Scored
from blora.server.schemas.decisions.requests import MOST_QUESTIONS, as_text
from blora.server.schemas.requests import NonEmpty, Policy, Request, check_different, seen
from blora.server.schemas.responses import Response

__all__ = [
    "Content",
    "NoulAnswer",
    "RefusedAnswer",
    "SystemOneAnswer",
    "SystemOneChoice",
    "SystemOneChoiceAnswer",
    "SystemOneNoul",
    "SystemOneRequest",
    "SystemOneResponse",
    "SystemOneScore",
    "SystemOneScoreAnswer",
    "SystemOneUsage",
    "is_empty",
]


def _content(value: object) -> Any:
    if isinstance(value, str | dict | list):
        return value
    raise PydanticCustomError("content_type", "Input should be a string, an object or an array")


def is_empty(content: str | dict[str, Any] | list[Any]) -> bool:
    """Return whether a content says nothing: a blank text, or an object or an array without items."""
    return not (seen(content) if isinstance(content, str) else content)


Content = Annotated[Any, PlainValidator(_content, json_schema_input_type=str | dict[str, Any] | list[Any])]


class _Question(Request):
    instructions: Content | None = Field(default=None, description="What is asked of the state.")


class NoulCriteria(Request):
    """Descriptions of what counts as yes and as no."""

    true: Content | None = None
    false: Content | None = None


class SystemOneNoul(_Question):
    """Question whose answer is yes or no; it needs instructions or criteria."""

    type: Literal["noul"]
    criteria: NoulCriteria | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "SystemOneNoul":
        criteria = self.criteria or NoulCriteria()
        said = self.instructions, criteria.true, criteria.false
        if all(part is None or is_empty(part) for part in said):
            raise PydanticCustomError(
                "no_criteria",
                "The question has neither instructions nor criteria: send one of them.",
                {"param": "instructions"},
            )
        return self


class SystemOneChoice(_Question):
    """Question whose answer is one of several labels."""

    type: Literal["choice"]
    criteria: dict[str, Content | None] = Field(
        min_length=2, max_length=MOST_CHOICES, description="Descriptions by label; null for none."
    )

    @field_validator("criteria")
    @classmethod
    def _all_different(cls, criteria: dict[str, Any]) -> dict[str, Any]:
        check_different(list(criteria), by_name=True)
        return criteria


def _level_text(index: int, level: Any) -> str:
    try:
        return as_text(level)
    except PydanticCustomError as exc:
        raise PydanticCustomError(exc.type, exc.message_template, {"param": (index,)}) from exc


class SystemOneScore(_Question):
    """Question whose answer is one of several levels, counted from 0."""

    type: Literal["score"]
    criteria: list[Content] = Field(
        min_length=2, max_length=MOST_CHOICES, description="Descriptions of the levels, the lowest first."
    )

    @field_validator("criteria")
    @classmethod
    def _all_different(cls, criteria: list[Any]) -> list[Any]:
        check_different([_level_text(index, level) for index, level in enumerate(criteria)])
        return criteria


SystemOneQuestion = SystemOneNoul | SystemOneChoice | SystemOneScore


class SystemOneRequest(Request):
    """Questions about one state."""

    model: NonEmpty = Field(
        description="The adapter that answers, as `adapter` of /v1/predict; adapters named MODEL.SOMETHING answer too."
    )
    state: Content = Field(description="What the questions are about: a text, or JSON that is read as text.")
    questions: dict[str, SkipValidation[SystemOneQuestion]] = Field(min_length=1, max_length=MOST_QUESTIONS)
    assets: None = Field(default=None, description="Images and the like are not read: null, or left out.")
    policy: Policy | None = Field(
        default=None, description="Ours: policy for abstention of all questions; the adapters' own by default."
    )
    refuse: bool | None = Field(
        default=None,
        description="Ours: whether an abstention is an answer of type `refusal`, without probabilities, or the full "
        "answer with `abstained: true`; by default the full answer, or as --refuse-abstentions says.",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_images(cls, body: Any) -> Any:
        for name in ("assets", "images", "audio", "videos"):
            if isinstance(body, dict) and body.get(name) is not None:
                raise PydanticCustomError(
                    "not_text",
                    "This server reads text only: leave this field out, or describe it in words.",
                    {"param": name},
                )
        return body


class _Noul(Response):
    type: Literal["noul"]
    noul: float = Field(ge=0, le=1)
    std: float = Field(ge=0, description="Ours: standard deviation of the probability over the draws.")


class NoulAnswer(Scored, _Noul):
    """Probability of yes."""


class _Choice(Response):
    type: Literal["choice"]
    choice: str
    probabilities: dict[str, float]
    stds: dict[str, float] = Field(description="Ours: standard deviations of the probabilities over the draws.")
    confidence: float = Field(
        ge=0, le=1, description="(p - 1/K) / (1 - 1/K) for the largest p of K probabilities; not that probability."
    )


class SystemOneChoiceAnswer(Scored, _Choice):
    """The most probable label, and the probabilities of all."""


class _Score(Response):
    type: Literal["score"]
    score: float
    score_std: float = Field(ge=0, description="Ours: standard deviation of the score over the draws.")
    legend: dict[str, Content]
    probabilities: dict[str, float]
    stds: dict[str, float] = Field(description="Ours: standard deviations of the probabilities over the draws.")
    confidence: float = Field(
        ge=0,
        le=1,
        description="One minus the expected distance from the most probable level, over that of equal probabilities.",
    )


class SystemOneScoreAnswer(Scored, _Score):
    """Expected level, and the probabilities of all levels."""


class _Refusal(Response):
    type: Literal["refusal"]


class RefusedAnswer(Own, _Refusal):
    """Ours: an abstention, where the request or the server asks for refusals."""


SystemOneAnswer = NoulAnswer | SystemOneChoiceAnswer | SystemOneScoreAnswer | RefusedAnswer


class SystemOneUsage(Response):
    """Numbers of tokens: those of the different texts that were read, and no output."""

    input_tokens: int
    output_tokens: int


class SystemOneResponse(Response):
    """Answers by the names of the questions."""

    model: str
    answers: dict[str, SystemOneAnswer]
    usage: SystemOneUsage
