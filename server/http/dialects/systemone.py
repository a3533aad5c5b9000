"""TypeSafe's dialect: POST /v1/systemone."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from blora.server.errors import InvalidRequestError, ServerError
from blora.server.http.dialects.exchange import Read, exchange
from blora.server.http.dialects.own_fields import own_fields, scored_fields
from blora.server.http.dialects.reading import no_images, read_kind, text_at
from blora.server.http.responses import ServiceOf, documented_errors
from blora.server.http.strict_json import StrictJsonRoute, media_type
from blora.server.prediction.decisions.answering import Answer, AnsweredRequest
from blora.server.prediction.decisions.question import Option, Question, predicate_options
from blora.server.prediction.decisions.statistics import concentration, expected_level, level_confidence
from blora.server.schemas.decisions.requests import MOST_NAME
from blora.server.schemas.decisions.systemone import (
    NoulAnswer,
    NoulCriteria,
    RefusedAnswer,
    SystemOneAnswer,
    SystemOneChoice,
    SystemOneChoiceAnswer,
    SystemOneNoul,
    SystemOneRequest,
    SystemOneResponse,
    SystemOneScore,
    SystemOneScoreAnswer,
    SystemOneUsage,
    is_empty,
)
from blora.server.schemas.validation import field_name

__all__ = ["TextOnly", "router"]

router = APIRouter(route_class=StrictJsonRoute)

_PATH = "/v1/systemone"

_QUESTIONS: dict[str, type[SystemOneNoul | SystemOneChoice | SystemOneScore]] = {
    "noul": SystemOneNoul,
    "choice": SystemOneChoice,
    "score": SystemOneScore,
}


class TextOnly:
    """ASGI middleware that refuses images by the request's header, before the body is found to be too long for JSON.

    TypeSafe's SDK sends them beside the JSON as multipart/form-data.

    Args:
        app: the wrapped ASGI application.
        refuse: makes the response for an error.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[ServerError], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        is_asked = scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", _PATH)
        has_images = is_asked and media_type(Request(scope)) == "multipart/form-data"
        await (self._refuse(no_images("assets")) if has_images else self._app)(scope, receive, send)


@router.post(
    _PATH,
    summary="Answer typed questions about one state, in TypeSafe's shape",
    response_model=SystemOneResponse,
    responses=documented_errors(of_decisions=True),
)
async def systemone(request: Request, body: Annotated[SystemOneRequest, Body()], service: ServiceOf) -> Response:
    """Answer up to 400 nouls, choices and scores about one state, each with its uncertainty."""
    return await exchange(
        request,
        service,
        body,
        text_field="state",
        read=lambda: Read(_state(body.state), _questions(body.questions)),
        shape=partial(_response, body.questions),
    )


def _state(given: Any) -> str:
    """Return the state of a request as one text.

    Raises:
        InvalidRequestError: if it is empty, or a number in it is not finite.
    """
    text = text_at(given, "state")
    if is_empty(given):
        raise InvalidRequestError("This text is empty: fill it.", code="empty_string", param="state")
    return text


def _questions(given: Mapping[str, object]) -> list[Question]:
    """Return the questions of a request.

    Raises:
        InvalidRequestError: naming the path of the first wrong value; a question whose name is not like a field's is
            named by its place.
    """
    questions = []
    for index, (name, item) in enumerate(given.items()):
        at = _below("questions", name, index)
        if not 1 <= len(name) <= MOST_NAME:
            raise InvalidRequestError(
                f"got a name of {len(name)} characters, expected 1 to {MOST_NAME}: change it",
                code="invalid_length",
                param=at,
            )
        questions.append(_question(name, item, at))
    return questions


def _question(name: str, item: object, at: str) -> Question:
    read = read_kind(item, _QUESTIONS, at)
    instructions = _text(read.instructions, f"{at}.instructions")
    match read:
        case SystemOneNoul():
            criteria = read.criteria or NoulCriteria()
            options = predicate_options(
                _text(criteria.true, f"{at}.criteria.true"), _text(criteria.false, f"{at}.criteria.false")
            )
            return Question(path=at, type="predicate", instructions=instructions, options=options, name=name)
        case SystemOneChoice():
            options = tuple(
                Option(label, _text(meaning, _below(f"{at}.criteria", label, index)))
                for index, (label, meaning) in enumerate(read.criteria.items())
            )
        case SystemOneScore():
            options = tuple(
                Option(text_at(level, f"{at}.criteria[{index}]")) for index, level in enumerate(read.criteria)
            )
    return Question(path=at, type=read.type, instructions=instructions, options=options, name=name)


def _below(at: str, name: str, index: int) -> str:
    """Return the path of a named value, by its place if the name is not like a field's."""
    field = field_name(name)
    return f"{at}.{field}" if field is not None else f"{at}[{index}]"


def _text(content: Any, at: str) -> str:
    return "" if content is None else text_at(content, at)


def _response(asked: Mapping[str, Any], answered: AnsweredRequest, refuse: bool) -> SystemOneResponse:
    pairs = zip(asked.items(), answered.answers, strict=True)
    return SystemOneResponse(
        model=answered.model,
        answers={name: _answer(answer, question, refuse=refuse) for (name, question), answer in pairs},
        usage=SystemOneUsage(input_tokens=answered.input_tokens, output_tokens=0),
    )


def _answer(answer: Answer, question: Mapping[str, Any], *, refuse: bool) -> SystemOneAnswer:
    if refuse and answer.prediction.abstained:
        return RefusedAnswer(type="refusal", **own_fields(answer))
    probs, stds, scored = answer.probabilities, answer.stds, scored_fields(answer)
    values = [str(option.value) for option in answer.question.options]
    match answer.question.type:
        case "predicate":
            return NoulAnswer(type="noul", noul=probs[0], std=stds[0], **scored)
        case "choice":
            return SystemOneChoiceAnswer(
                type="choice",
                choice=str(answer.top),
                probabilities=dict(zip(values, probs, strict=True)),
                stds=dict(zip(values, stds, strict=True)),
                confidence=concentration(probs),
                **scored,
            )
        case "score":
            levels = [str(level) for level in range(len(values))]
            return SystemOneScoreAnswer(
                type="score",
                score=expected_level(probs),
                score_std=answer.score_std,
                legend=dict(zip(levels, question["criteria"], strict=True)),
                probabilities=dict(zip(levels, probs, strict=True)),
                stds=dict(zip(levels, stds, strict=True)),
                confidence=level_confidence(probs),
                **scored,
            )
