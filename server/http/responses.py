"""Parts that the routes of every dialect share: the service, error responses, and their documentation."""

import logging
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from blora.client.answers import ErrorBody, Prediction
from blora.server.errors import CODES, ServerError, TryLaterError, UnauthorizedError
from blora.server.monitoring.logs import log_outcome
from blora.server.prediction.service import Service
from blora.server.schemas.responses import Response as Answer
from blora.server.schemas.responses import error_body

__all__ = ["ServiceOf", "batch_response", "documented_errors", "error_response", "json_response", "refuse"]

logger = logging.getLogger(__name__)

_NOT_OF_PREDICTIONS = {
    *("disconnected", "not_found", "method_not_allowed", "forbidden"),
    *("adapter_conflict", "adapter_stalled", "adapter_too_large", "adapter_unavailable"),
    *("invalid_adapter", "too_many_adapters"),
    *("feedback_unavailable", "label_not_offered", "unknown_prediction"),
}
_OF_DECISIONS = {"not_text", "unknown_question"}


def error_response(error: ServerError) -> JSONResponse:
    """Return the JSON response for an error, with the HTTP status of its code."""
    headers = {}
    if isinstance(error, TryLaterError):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error).model_dump(), status_code=error.status, headers=headers)


def json_response(answer: Answer) -> Response:
    """Return the JSON response for an answer, with the fields that are set; for long answers, off the event loop."""
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")


def batch_response(outcomes: Sequence[Prediction | ServerError]) -> Response:
    """Return the JSON response for a batch, as a BatchResponse; for long answers, off the event loop.

    Its Retry-After is the longest wait of the inputs that are to be asked again. Each answer is written by itself,
    because pydantic holds Python's global lock, for which the event loop waits, until an object is written.
    """
    bodies = (error_body(outcome) if isinstance(outcome, ServerError) else outcome for outcome in outcomes)
    written = ",".join(body.model_dump_json(exclude_unset=True) for body in bodies)
    waits = [outcome.retry_after_s for outcome in outcomes if isinstance(outcome, TryLaterError)]
    headers = {"retry-after": str(max(waits))} if waits else {}
    return Response(f'{{"predictions":[{written}]}}', media_type="application/json", headers=headers)


def refuse(service: Service, error: ServerError) -> JSONResponse:
    """Count an error of a request that did not reach the predictor, and return its response."""
    service.metrics.failed(error)
    log_outcome(logger, error.code)
    return error_response(error)


# Asynchronous, because FastAPI runs synchronous dependencies in a thread.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


def documented_errors(*, of_decisions: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a prediction, or of a request of typed questions, for /openapi.json: the codes by status."""
    others = _NOT_OF_PREDICTIONS if of_decisions else _NOT_OF_PREDICTIONS | _OF_DECISIONS
    codes: dict[int, list[str]] = {}
    for code, (status, _) in CODES.items():
        if code not in others:
            codes.setdefault(status, []).append(code)
    return {status: {"model": ErrorBody, "description": ", ".join(names)} for status, names in codes.items()}
