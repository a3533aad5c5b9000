"""Models of request bodies. Validation is strict: an unknown field is refused, and "16" is not a number.

Validation takes bounded time and reports a bounded number of problems for any body. The inputs of a batch are not
validated together with the batch: `BatchRequest.questions` validates them one at a time, after the number of inputs has
been checked, so that an invalid input fails alone and the others are answered.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    SkipValidation,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from blora.config import MOST_CHOICES
from blora.questions.spelling import seen
from blora.scores import SCORES, Score
from blora.server.errors import InvalidRequestError
from blora.server.schemas.validation import invalid_request

__all__ = [
    "BatchRequest",
    "LoadAdapter",
    "Message",
    "NonEmpty",
    "Policy",
    "PredictBody",
    "PredictRequest",
    "PutAdapter",
    "Request",
    "TellOutcome",
    "check_different",
    "seen",
]

NonEmpty = Annotated[str, Field(min_length=1)]
MAX_SEED = 2**63 - 1
MAX_MESSAGES = 256
# Limit for the probabilities under each draw in all answers to a batch, which take about 23 bytes each.
MAX_SAMPLE_VALUES = 2**18
# Limit for the characters of a label, longer than any sensible choice.
MAX_LABEL = 32_768


class Request(BaseModel):
    """Base class of all request bodies and their parts."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, body: Any) -> Any:
        """Raise a single error for a body with more fields than exist, since pydantic would list each of them."""
        if isinstance(body, dict) and len(body) > len(cls.model_fields):
            unknown = next(name for name in body if name not in cls.model_fields)
            raise PydanticCustomError(
                "too_many_fields",
                "There is no field of this name: remove it or correct its spelling.",
                {"param": unknown},
            )
        return body


class Message(Request):
    """One turn of a chat, for the base model's chat template."""

    role: Literal["system", "user", "assistant"]
    content: NonEmpty


def _threshold(score: Score) -> tuple[Any, Any]:
    """Return the type and the limits of a threshold's field in a policy."""
    greatest = score.greatest if isfinite(score.greatest) else None
    needs = f" Refused without {score.fewest_draws} or more draws that differ." if score.fewest_draws > 1 else ""
    return float | None, Field(default=None, ge=0, le=greatest, description=f"Abstain if {score.failure}.{needs}")


_THRESHOLDS: dict[str, Any] = {score.threshold: _threshold(score) for score in SCORES.values()}
_Thresholds: Any = create_model("_Thresholds", __base__=Request, **_THRESHOLDS)


class Policy(_Thresholds):  # type: ignore[misc]  # a type checker cannot read the table
    """Policy for abstention: thresholds, or a target risk. A value equal to its threshold is answered."""

    target_risk: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Answer only with the threshold for which the adapter's calibration proves that P(wrong | "
        "answered) is at most this target. One of the targets that GET /v1/adapters lists; cannot be combined with "
        "thresholds.",
    )

    def thresholds(self) -> dict[str, float]:
        """Return the thresholds that are set, by name."""
        return {name: value for name, value in dict(self).items() if name != "target_risk" and value is not None}

    @model_validator(mode="after")
    def _says_something(self) -> "Policy":
        if self.target_risk is None and not self.thresholds():
            raise PydanticCustomError(
                "empty_policy",
                "The policy has no threshold: leave `policy` out for the adapter's own, or send min_confidence 0 to "
                "answer always.",
            )
        if self.target_risk is not None and self.thresholds():
            raise PydanticCustomError(
                "target_and_thresholds",
                "The policy has a target_risk and thresholds: send one or the other, since a target comes with the "
                "threshold that was proved for it.",
                {"param": "target_risk"},
            )
        return self


class Question(Request):
    """Fields of one input; beside `inputs` in a batch, the same fields are defaults."""

    adapter: NonEmpty | None = Field(
        default=None,
        description="The adapter: NAME, NAME@DIGEST to pin its contents, or NAME@DIGEST+CALIBRATION_DIGEST to pin its "
        "calibration and policy too; digests as sha256:HEX.",
    )
    prompt: NonEmpty | None = Field(default=None, description="The question; or send `messages`.")
    messages: list[Message] | None = Field(
        default=None, min_length=1, max_length=MAX_MESSAGES, description="The question as a chat; or send `prompt`."
    )
    choices: list[NonEmpty] | None = Field(
        default=None,
        min_length=2,
        max_length=MOST_CHOICES,
        description="The possible answers, all different; the adapter's fixed labels by default.",
    )
    scoring: Literal["text", "label"] | None = Field(
        default=None,
        description="Scoring of choices; the adapter's own by default. `text` does not depend on the order of the "
        "choices. `label` scores the letters of a list in the prompt and depends on their order: another order has "
        "changed a probability by up to 0.57, so send choices in the order of the training rows.",
    )
    n_samples: int | None = Field(
        default=None,
        ge=1,
        description="Number of draws, which are samples of the posterior over weights, up to the server's cap; the "
        "adapter's own by default. An adapter with early stopping takes fewer if they settle the decision.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Seed for fresh draws; by default the adapter's own, so that equal requests get equal answers.",
    )
    policy: Policy | None = Field(default=None, description="Policy for abstention; the adapter's own by default.")
    return_samples: bool = Field(
        default=False,
        description="Add the probabilities under each draw to the answer. A batch whose answers would have more than "
        f"{MAX_SAMPLE_VALUES:,} of them (inputs x draws x choices) gets 413.",
    )

    @field_validator("choices")
    @classmethod
    def _all_different(cls, choices: list[str] | None) -> list[str] | None:
        check_different(choices or [], by_name=True)
        return choices


class PredictRequest(Question):
    """One question, given as a prompt or as messages."""

    @model_validator(mode="after")
    def _one_question(self) -> "PredictRequest":
        _check_question(self)
        return self


_Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL)] | bool | Annotated[int, Field(ge=0, lt=MOST_CHOICES)]


def _label(value: object) -> str | bool | int:
    """Return a label, whose errors a union would give once for each of its types."""
    if isinstance(value, str):
        if not value:
            raise PydanticKnownError("string_too_short", {"min_length": 1})
        if len(value) > MAX_LABEL:
            raise PydanticKnownError("string_too_long", {"max_length": MAX_LABEL})
    elif not isinstance(value, int) or not 0 <= value < MOST_CHOICES:  # a boolean is an integer too
        raise PydanticCustomError("label_type", "Input should be a string, a boolean or a level's number")
    return value


class TellOutcome(Request):
    """Outcome of a prediction: the right choice, or that no offered choice is right."""

    prediction_id: NonEmpty = Field(max_length=64, description="`id` of the answer.")
    label: Annotated[str | bool | int | None, PlainValidator(_label, json_schema_input_type=_Label)] = Field(
        default=None,
        description="The right choice: spelled as in the request, true or false of a typed question, or the number of "
        "a score's level. A new report replaces an earlier one.",
    )
    none_of_these: bool = Field(
        default=False, description="True in place of a label: no offered choice is right, so that the answer is wrong."
    )

    @model_validator(mode="after")
    def _one_outcome(self) -> "TellOutcome":
        if (self.label is None) != self.none_of_these:
            raise PydanticCustomError(
                "one_outcome",
                "The outcome is a label or none_of_these: send one of them.",
                {"param": "label"},
            )
        return self


class LoadAdapter(Request):
    """Adapter to serve, and its name."""

    name: NonEmpty = Field(max_length=64, description="Name of the adapter in requests.")
    path: NonEmpty = Field(description="Its folder, below the server's adapter root.")


class PutAdapter(Request):
    """Adapter to serve under the name in the path."""

    path: NonEmpty = Field(description="Its folder, below the server's adapter root.")


class BatchRequest(Question):
    """Several questions; the fields beside `inputs` are defaults, which an input's own fields override, null too."""

    inputs: list[SkipValidation[PredictRequest]] = Field(min_length=1)

    def questions(self) -> list[PredictRequest | InvalidRequestError]:
        """Return each input merged with the defaults, or the error of an invalid input."""
        defaults = {name: getattr(self, name) for name in self.model_fields_set - {"inputs"}}
        return [_question(item, defaults) for item in self.inputs]


def _question(item: object, defaults: dict[str, Any]) -> PredictRequest | InvalidRequestError:
    try:
        own = Question.model_validate(item)
        given = {name: getattr(own, name) for name in own.model_fields_set}
        merged = {**defaults, **given}
        asked = {"prompt", "messages"} & given.keys()
        if asked:  # an input's own question replaces the default one, be it prompt or messages
            for form in {"prompt", "messages"} - asked:
                merged.pop(form, None)
        # The defaults have been validated, once for all inputs.
        question = PredictRequest.model_construct(**merged)
        _check_question(question)
    except ValidationError as exc:
        return invalid_request(exc.errors(include_url=False))
    except PydanticCustomError as exc:
        return invalid_request([{"type": exc.type, "loc": (), "msg": exc.message(), "ctx": exc.context}])
    return question


def _check_question(question: Question) -> None:
    if question.prompt is None and question.messages is None:
        raise PydanticCustomError(
            "no_question",
            "The request has neither prompt nor messages: send one of them.",
            {"param": "prompt"},
        )
    if question.prompt is not None and question.messages is not None:
        raise PydanticCustomError(
            "two_questions",
            "The request has both prompt and messages: remove one of them.",
            {"param": "messages"},
        )


def check_different(values: Sequence[str | bool], field: str | None = None, *, by_name: bool = False) -> None:
    """Raise a validation error that names the second of two equal values.

    Args:
        values: texts and booleans, which are never equal to each other.
        field: the field of an item that has the value; None if the item itself is the value.
        by_name: whether the values are names of fields, which error paths do not number.
    """
    known: set[str | bool] = set()
    for index, value in enumerate(values):
        key = value if isinstance(value, bool) else seen(value)
        path = tuple(part for part in (None if by_name else index, field) if part is not None)
        if key == "":
            raise PydanticCustomError("blank_choice", "A choice is blank: fill it or remove it.", {"param": path})
        if key in known:
            raise PydanticCustomError(
                "duplicate_choices",
                "Two choices are the same (white space at the ends and invisible characters do not count): remove one.",
                {"param": path},
            )
        known.add(key)


def _kind(body: object) -> str:
    return "batch" if isinstance(body, dict) and "inputs" in body else "single"


PredictBody = Annotated[
    Annotated[PredictRequest, Tag("single")] | Annotated[BatchRequest, Tag("batch")],
    Discriminator(_kind),
]
