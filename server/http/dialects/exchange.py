"""The steps that a request of every dialect takes: it is read, its questions are answered, the answers are shaped."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from fastapi import Request, Response

from blora.server.errors import DeadlineExceededError, ServerError
from blora.server.http.disconnect import unless_disconnected
from blora.server.http.responses import error_response, json_response
from blora.server.http.strict_json import Reader
from blora.server.prediction.decisions.answering import Answered, answer_questions
from blora.server.prediction.decisions.question import Question
from blora.server.prediction.service import Service
from blora.server.schemas.requests import Policy
from blora.server.schemas.responses import Response as Answer

__all__ = ["Asked", "exchange"]


class Asked(Protocol):
    """The fields that the bodies of all dialects have."""

    model: str
    policy: Policy | None
    refuse: bool | None


async def exchange(
    request: Request,
    service: Service,
    body: Asked,
    *,
    text_field: str,
    read: Callable[[], tuple[str, list[Question]]],
    shape: Callable[[Answered, bool], Answer],
) -> Response:
    """Return the response to a request of a dialect.

    Args:
        request: the request, whose work ends when its client disconnects.
        service: the service that answers.
        body: the request's body.
        text_field: the body's field with the text, for error messages.
        read: returns the text and the questions of the body; it runs in a thread.
        shape: returns the response of the answers, with abstentions as refusals or not; it runs in a thread.

    Raises:
        ServerError: if the body cannot be read, or its model does not answer one of the questions.
    """
    predictor = service.predictor()
    reader: Reader = request.app.state.reader
    deadline = predictor.deadline()
    try:
        async with asyncio.timeout_at(deadline):
            text, questions = await reader.run_in_thread(read)
    except TimeoutError as exc:
        raise DeadlineExceededError("The request was not read before its deadline: try again later.") from exc
    asking = answer_questions(
        predictor, body.model, text, questions, policy=body.policy, deadline=deadline, text_field=text_field
    )
    outcome = await unless_disconnected(request, asking)
    if isinstance(outcome, ServerError):
        return error_response(outcome)
    refuse = body.refuse if body.refuse is not None else service.settings.refuse_abstentions
    return await reader.run_in_thread(lambda: json_response(shape(outcome, refuse)))
