"""The steps that a request of every dialect takes: it is read, its questions are answered, the answers are shaped."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from fastapi import Request, Response

from blora.server.errors import ServerError
from blora.server.http.disconnect import unless_disconnected
from blora.server.http.reading import Reading
from blora.server.http.responses import error_response, json_response
from blora.server.keys import allowed_adapters
from blora.server.prediction.decisions.answering import AnsweredRequest, answer_questions
from blora.server.prediction.decisions.question import Question
from blora.server.prediction.decisions.recognition import family
from blora.server.prediction.policies import Wording
from blora.server.prediction.service import Service
from blora.server.schemas.requests import Policy
from blora.server.schemas.responses import Response as Answer

__all__ = ["Asked", "Read", "exchange"]


class Asked(Protocol):
    """The fields that the bodies of all dialects have."""

    model: str
    policy: Policy | None
    refuse: bool | None


class Read(NamedTuple):
    """Text and questions of a request, as its dialect reads them.

    Attributes:
        text: the text that the questions are about.
        questions: the questions.
        other_wording: what makes the text another one than those of any calibration; None for nothing.
    """

    text: str
    questions: list[Question]
    other_wording: Wording | None = None


async def exchange(
    request: Request,
    service: Service,
    body: Asked,
    *,
    text_field: str,
    read: Callable[[], Read],
    shape: Callable[[AnsweredRequest, bool], Answer],
) -> Response:
    """Return the response to a request of a dialect.

    Args:
        request: the request, whose work ends when its client disconnects.
        service: the service that answers.
        body: the request's body.
        text_field: the body's field with the text, for error messages.
        read: returns the text and the questions of the body; for a long body it runs in a thread.
        shape: returns the response of the answers, with abstentions as refusals or not; it runs where `read` does.

    Raises:
        ServerError: if the model is unknown or does not answer one of the questions, or the body cannot be read before
            the deadline.
    """
    predictor = service.predictor()
    reading: Reading = request.state.reading
    try:
        asked = family(predictor.registry, body.model, allowed_adapters())
    except ServerError as error:
        error.param = "model"
        raise
    text, questions, other_wording = await reading.run(request, read)
    asking = answer_questions(
        predictor,
        asked,
        text,
        questions,
        other_wording=other_wording,
        policy=body.policy,
        deadline=reading.deadline,
        text_field=text_field,
    )
    outcome = await unless_disconnected(request, asking)
    if isinstance(outcome, ServerError):
        return error_response(outcome)
    refuse = body.refuse if body.refuse is not None else service.settings.refuse_abstentions
    writing = Reading(reading.n_bytes, math.inf)  # the answers were in time, and wait for their outcomes
    return await writing.run(request, lambda: json_response(shape(outcome, refuse)))
