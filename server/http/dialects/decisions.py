"""OpenAI's dialect: POST /v1/decisions."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from blora.server.http.dialects.decisions_input import input_text, instructions_text
from blora.server.http.dialects.exchange import Read, exchange
from blora.server.http.dialects.own_fields import own_fields, scored_fields
from blora.server.http.dialects.reading import read_kind
from blora.server.http.responses import ServiceOf, documented_errors
from blora.server.http.strict_json import StrictJsonRoute
from blora.server.prediction.decisions.answering import Answer, AnsweredRequest
from blora.server.prediction.decisions.question import Option, Question, predicate_options
from blora.server.prediction.decisions.statistics import concentration, expected_level, level_confidence
from blora.server.schemas.decisions.answers import (
    ChoiceAnswer,
    DecisionAnswer,
    DecisionsResponse,
    InputTokens,
    LevelProbability,
    OutputTokens,
    PredicateAnswer,
    RefusalAnswer,
    ScoreAnswer,
    Usage,
    ValueProbability,
)
from blora.server.schemas.decisions.requests import (
    ChoiceQuestion,
    DecisionsRequest,
    PredicateQuestion,
    ScoreQuestion,
)

__all__ = ["router"]

router = APIRouter(route_class=StrictJsonRoute)

_QUESTIONS: dict[str, type[PredicateQuestion | ChoiceQuestion | ScoreQuestion]] = {
    "predicate": PredicateQuestion,
    "choice": ChoiceQuestion,
    "score": ScoreQuestion,
}


@router.post(
    "/v1/decisions",
    summary="Answer typed questions about one input, in OpenAI's shape",
    response_model=DecisionsResponse,
    responses=documented_errors(of_decisions=True),
)
async def decisions(request: Request, body: Annotated[DecisionsRequest, Body()], service: ServiceOf) -> Response:
    """Answer up to 400 predicates, choices and scores about one input, each with its uncertainty."""
    return await exchange(
        request,
        service,
        body,
        text_field="input",
        read=lambda: _read(body),
        shape=_response,
    )


def _read(body: DecisionsRequest) -> Read:
    text, has_roles = input_text(body.input)
    return Read(text, _questions(body.questions), "input" if has_roles else None)


def _questions(given: Sequence[object]) -> list[Question]:
    """Return the questions of a request.

    Raises:
        InvalidRequestError: naming the path of the first wrong value.
    """
    return [_question(item, f"questions[{index}]") for index, item in enumerate(given)]


def _question(item: object, at: str) -> Question:
    read = read_kind(item, _QUESTIONS, at)
    match read:
        case PredicateQuestion():
            options = predicate_options()
        case ChoiceQuestion():
            options = tuple(Option(choice.value, choice.description or "") for choice in read.choices)
        case ScoreQuestion():
            options = tuple(Option(level.label, level.description or "") for level in read.levels)
    instructions = instructions_text(read.instructions, f"{at}.instructions")
    return Question(path=at, type=read.type, instructions=instructions, options=options, name=read.name)


def _response(answered: AnsweredRequest, refuse: bool) -> DecisionsResponse:
    n_tokens = answered.input_tokens
    return DecisionsResponse(
        model=answered.model,
        answers=[_answer(answer, refuse=refuse) for answer in answered.answers],
        usage=Usage(
            input_tokens=n_tokens,
            input_tokens_details=InputTokens(cached_tokens=answered.cached_tokens, cache_write_tokens=0),
            output_tokens=0,
            output_tokens_details=OutputTokens(reasoning_tokens=0),
            total_tokens=n_tokens,
        ),
    )


def _answer(answer: Answer, *, refuse: bool) -> DecisionAnswer:
    name, probs, stds = answer.question.name, answer.probabilities, answer.stds
    if refuse and answer.prediction.abstained:
        return RefusalAnswer(type="refusal", name=name, **own_fields(answer))
    scored = scored_fields(answer)
    options = list(zip(answer.question.options, probs, stds, strict=True))
    match answer.question.type:
        case "predicate":
            return PredicateAnswer(type="predicate", name=name, probability=probs[0], std=stds[0], **scored)
        case "choice":
            return ChoiceAnswer(
                type="choice",
                name=name,
                choice=answer.top,
                probabilities=[
                    ValueProbability(value=option.value, probability=probability, std=std)
                    for option, probability, std in options
                ],
                confidence=concentration(probs),
                **scored,
            )
        case "score":
            return ScoreAnswer(
                type="score",
                name=name,
                score=expected_level(probs),
                score_std=answer.score_std,
                probabilities=[
                    LevelProbability(value=level, label=str(option.value), probability=probability, std=std)
                    for level, (option, probability, std) in enumerate(options)
                ],
                confidence=level_confidence(probs),
                **scored,
            )
