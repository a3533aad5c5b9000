"""Routes of the HTTP API."""

import math
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request

from blora.client.answers import AdapterRef, ErrorBody, Outcome, Prediction
from blora.server.errors import ServerError, TooLargeError
from blora.server.http.disconnect import unless_disconnected
from blora.server.http.reading import Reading
from blora.server.http.responses import ServiceOf, batch_response, documented_errors, error_response
from blora.server.http.strict_json import StrictJsonRoute
from blora.server.keys import KEY, allowed_adapters, client_name
from blora.server.prediction.cards import adapter_card, adapter_ref, base_card, model_card, model_metadata
from blora.server.prediction.decisions.recognition import family
from blora.server.schemas.cards import AdapterCard, AdapterList
from blora.server.schemas.requests import BatchRequest, LoadAdapter, PredictBody, PutAdapter, TellOutcome
from blora.server.schemas.responses import (
    BatchResponse,
    Info,
    Limits,
    ModelCard,
    ModelDescription,
    ModelList,
    Status,
)

__all__ = ["router"]

router = APIRouter(route_class=StrictJsonRoute)

# Bytes of a probability in an answer.
_VALUE_BYTES = 23


def _client() -> str:
    """Return the name of the request's key, for log lines about changes of adapters."""
    return client_name() or "nobody"


_UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": "not_ready, draining"}}
# As 4XX: with a bare 404 FastAPI would document a 422 that never occurs.
_UNKNOWN: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": ErrorBody,
        "description": "401: unauthorized; 404: unknown_adapter, digest_mismatch; 429: rate_limited",
    }
}
# Responses of the routes that need a key, where the server has keys, and nothing else of a request.
_KEYED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "401: unauthorized; 429: rate_limited"}
}

_FEEDBACK: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorBody, "description": "not_ready, draining, feedback_unavailable"},
    "4XX": {
        "model": ErrorBody,
        "description": "404: unknown_prediction; 422: label_not_offered, and as for predictions; 401 and 429 as "
        "for predictions",
    },
}
# Responses of the routes that change adapters.
_CHANGES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": ErrorBody,
        "description": "401: unauthorized; 403: forbidden; 404: unknown_adapter; 409: adapter_conflict, "
        "too_many_adapters; 413: adapter_too_large; 422: invalid_adapter and the like; 429: rate_limited",
    },
    503: {"model": ErrorBody, "description": "not_ready, draining, adapter_unavailable"},
    504: {"model": ErrorBody, "description": "adapter_stalled"},
}


@router.post(
    "/v1/predict",
    summary="Answer one question or several, or abstain",
    response_model=Prediction | BatchResponse,
    response_model_exclude_unset=True,
    responses=documented_errors(),
)
async def predict(request: Request, body: Annotated[PredictBody, Body()], service: ServiceOf) -> Prediction | Response:
    """Answer one question, or a batch {"inputs": [...]} whose other fields are defaults, with uncertainty.

    If inputs of a batch are to be asked again later, the response's Retry-After is the longest of their waits.
    """
    predictor = service.predictor()
    reading: Reading = request.state.reading
    if isinstance(body, BatchRequest):
        most = service.settings.max_inputs
        if len(body.inputs) > most:
            raise TooLargeError(
                f"got {len(body.inputs)} inputs, expected at most {most}: send several batches",
                code="too_many_inputs",
                param="inputs",
            )
        questions = await reading.run(request, body.questions)
        outcomes = await unless_disconnected(request, predictor.predict_batch(questions, deadline=reading.deadline))
        answered = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
        n_values = sum(len(each.probabilities) * (1 + len(each.samples or ())) for each in answered)
        writing = Reading(_VALUE_BYTES * n_values, math.inf)  # inputs that missed the deadline have errors of their own
        return await writing.run(request, lambda: batch_response(outcomes))
    outcome = await unless_disconnected(request, predictor.predict(body, deadline=reading.deadline))
    return error_response(outcome) if isinstance(outcome, ServerError) else outcome


@router.post("/v1/feedback", summary="Report the outcome of an answer", responses=_FEEDBACK)
async def feedback(body: TellOutcome, service: ServiceOf) -> Outcome:
    """Record the outcome of an answer; the metrics compare outcomes with the promised risk.

    A later outcome replaces an earlier one. Only the key that asked, or an admin's key, may report it.
    """
    return Outcome(correct=await service.predictor().feedback.told(body.prediction_id, body.label, KEY.get()))


@router.get("/v1/models", summary="List the base model and its adapters", responses=_UNAVAILABLE | _KEYED)
async def models(service: ServiceOf) -> ModelList:
    """List the models in OpenAI's format, where each adapter has the base model as its parent, and in TypeSafe's."""
    predictor = service.predictor()
    handles = predictor.registry.seen(allowed_adapters())
    return ModelList(
        data=[
            base_card(predictor.model, service.started),
            *(model_card(handle, predictor.model) for handle in handles),
        ],
        models=[model_metadata(handle) for handle in handles],
    )


@router.get("/v1/models/{name:path}", summary="Show the base model, or one adapter", responses=_UNAVAILABLE | _UNKNOWN)
async def model(name: str, service: ServiceOf) -> ModelCard:
    """Show the entry of the model list with this name, which may pin an adapter's digest."""
    predictor = service.predictor()
    if name == predictor.model.name:
        return base_card(predictor.model, service.started)
    return model_card(predictor.registry.resolve(name, allowed_adapters()), predictor.model)


@router.get(
    "/v1/adapters",
    summary="Show the cards of the adapters",
    response_model_exclude_unset=True,
    responses=_UNAVAILABLE | _KEYED,
)
async def adapters(service: ServiceOf) -> AdapterList:
    """List the cards of the adapters: training record, validation metrics and calibration."""
    predictor = service.predictor()
    seen = predictor.registry.seen(allowed_adapters())
    return AdapterList(
        object="list", data=[adapter_card(handle, predictor.feedback.drift_since(handle)) for handle in seen]
    )


@router.get(
    "/v1/adapters/{name}",
    summary="Show the card of one adapter",
    response_model_exclude_unset=True,
    responses=_UNAVAILABLE | _UNKNOWN,
)
async def adapter(name: str, service: ServiceOf) -> AdapterCard:
    """Show an adapter's card: training record, validation metrics and calibration. The name may pin a digest.

    A key for NAME opens the cards of the adapters NAME.SOMETHING too, which answer questions of the model NAME.
    """
    predictor = service.predictor()
    registry, opened = predictor.registry, allowed_adapters()
    handle = family(registry, name, opened).own or registry.resolve(name, opened)
    return adapter_card(handle, predictor.feedback.drift_since(handle))


@router.post(
    "/v1/adapters",
    summary="Load an adapter, or find it loaded",
    status_code=201,
    responses=_CHANGES | {200: {"model": AdapterRef, "description": "The adapter was already loaded."}},
)
async def load_adapter(body: LoadAdapter, service: ServiceOf, response: Response) -> AdapterRef:
    """Load an adapter and return its name and digests. Needs --adapter-root and an admin's key."""
    handle, is_new = await service.loader().load(body.name, body.path, by=_client())
    if not is_new:
        response.status_code = 200
    return adapter_ref(handle)


@router.put(
    "/v1/adapters/{name}",
    summary="Load an adapter, or replace the one of that name",
    responses=_CHANGES
    | {
        200: {"description": "The adapter replaced another one, or was already loaded."},
        201: {"model": AdapterRef, "description": "There was no adapter of that name."},
    },
)
async def replace_adapter(name: str, body: PutAdapter, service: ServiceOf, response: Response) -> AdapterRef:
    """Load or replace an adapter and return its name and digests; every request gets the old one or the new one.

    The old adapter is served until the new one has passed its test forward pass, and finishes the requests that it
    has. Repeating the request changes nothing. Needs --adapter-root and an admin's key.
    """
    handle, is_new = await service.loader().load(name, body.path, by=_client(), replace=True)
    if is_new:
        response.status_code = 201
    return adapter_ref(handle)


@router.delete("/v1/adapters/{name}", summary="Unload an adapter", status_code=204, responses=_CHANGES)
async def unload_adapter(name: str, service: ServiceOf) -> None:
    """Unload an adapter; requests in flight still finish on it. Needs --adapter-root and an admin's key."""
    await service.loader().unload(name, by=_client())


@router.get("/livez", summary="Say that the process runs", responses=_UNAVAILABLE)
async def livez(service: ServiceOf) -> Status:
    """Return 200 while the event loop runs, no forward pass hangs and the device is not lost; otherwise 503."""
    service.check_alive()
    return Status()


@router.get("/readyz", summary="Say whether requests will be answered", responses=_UNAVAILABLE)
async def readyz(service: ServiceOf) -> Status:
    """Return 200 while an adapter is ready and the server does not drain; otherwise 503 with the reason."""
    await service.check_ready()
    return Status()


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics(service: ServiceOf) -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/info", summary="Say what is running", responses=_KEYED)
async def info(service: ServiceOf) -> Info:
    """Return the version, the model and the limits."""
    predictor = service.loaded
    return Info(
        version=service.build.version,
        revision=service.build.revision,
        model=ModelDescription.model_validate(predictor.model, from_attributes=True) if predictor else None,
        limits=Limits(**service.settings.model_dump(include=set(Limits.model_fields))),
    )
