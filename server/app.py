"""The ASGI application: routes, error handlers and middleware around one service."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from blora.client.answers import ErrorBody
from blora.server.engines.protocol import Engine
from blora.server.errors import (
    DisconnectedError,
    ForbiddenError,
    InvalidRequestError,
    MethodNotAllowedError,
    NoSuchRouteError,
    ServerError,
    UnauthorizedError,
)
from blora.server.http import pages
from blora.server.http.authentication import KeyAuthentication, RateLimiter
from blora.server.http.dialects import decisions, systemone
from blora.server.http.metrics_port import MetricsPort
from blora.server.http.middleware import (
    BodyLimit,
    CatchAll,
    CloseWhileDraining,
    HeadAsGet,
    RequestId,
    SafeHeaders,
    UnambiguousLength,
)
from blora.server.http.reading import Reader
from blora.server.http.responses import error_response, refuse
from blora.server.http.routes import router
from blora.server.keys import Keys
from blora.server.monitoring.audit_log import AuditLog
from blora.server.prediction.service import Service
from blora.server.schemas.validation import invalid_request
from blora.server.settings import Settings

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

_ROUTERS = (router, decisions.router, systemone.router)


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """Return the server as an ASGI application, whose lifespan loads the model and drains the queue.

    Args:
        settings: the server's settings.
        engine: computes the probabilities; by default the engine that the settings name.
    """
    service = Service(settings, engine or _engine(settings))
    audit_log = AuditLog()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()
        app.state.reader.close()

    app = FastAPI(
        title="blora",
        summary="Answers with their uncertainty, from a Bayesian-LoRA language model.",
        version=service.build.version,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        responses={500: {"model": ErrorBody, "description": "internal_error"}},
    )
    app.state.service = service
    app.state.reader = Reader(settings.max_body_bytes)
    for each in _ROUTERS:
        app.include_router(each)
    if settings.playground:
        app.include_router(pages.router)
    _handle_errors(app, service, audit_log)
    # The middleware added last is the outermost.
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.read_timeout_s,
        refuse=lambda error: refuse(service, error),
    )
    app.add_middleware(systemone.TextOnly, refuse=lambda error: refuse(service, error))
    app.add_middleware(
        KeyAuthentication,
        keys=Keys(settings.api_keys) if settings.api_keys is not None else None,
        rate=RateLimiter(settings.requests_per_minute),
        refuse=lambda error, scope: _refuse_by_key(service, audit_log, error, scope),
        pages=pages.PAGE_PATHS if settings.playground else frozenset(),
    )
    app.add_middleware(UnambiguousLength, refuse=lambda error: refuse(service, error))
    app.add_middleware(CatchAll, refuse=lambda error: refuse(service, error))
    app.add_middleware(CloseWhileDraining, draining=lambda: service.draining)
    if settings.metrics_port:
        app.add_middleware(MetricsPort, port=settings.metrics_port, refuse=lambda error: refuse(service, error))
    app.add_middleware(SafeHeaders)
    app.add_middleware(RequestId)
    service.traces.attach(app)
    return app


def _engine(settings: Settings) -> Engine:
    # The model's libraries are imported here and not earlier.
    if settings.engine == "vllm":
        from blora.server.engines.vllm_engine import VllmEngine

        return VllmEngine(settings)
    from blora.server.engines.torch_engine import TorchEngine

    return TorchEngine(settings)


def _refuse_by_key(service: Service, audit_log: AuditLog, error: ServerError, scope: Scope) -> Response:
    """Return the response for an error; log the request if it was refused because of its key."""
    if not isinstance(error, ForbiddenError | UnauthorizedError):
        return refuse(service, error)
    service.metrics.failed(error)
    audit_log.refused(error, scope)
    return error_response(error)


def _handle_errors(app: FastAPI, service: Service, audit_log: AuditLog) -> None:
    @app.exception_handler(ServerError)
    async def refused(request: Request, error: ServerError) -> Response:
        return _refuse_by_key(service, audit_log, error, request.scope)

    @app.exception_handler(DisconnectedError)
    async def disconnected(request: Request, error: DisconnectedError) -> Response:
        return error_response(error)  # no client reads it, and the predictor has counted the questions in work

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(service, invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def from_starlette(request: Request, error: HTTPException) -> Response:
        response = refuse(service, _translate(error))
        response.headers.update(error.headers or {})
        if methods := error.status_code == status.HTTP_405_METHOD_NOT_ALLOWED and _methods(request.scope):
            response.headers["allow"] = ", ".join(sorted(methods))  # Starlette names those of the first route alone
        return response


def _methods(scope: Scope) -> set[str]:
    """Return the methods of all routes at the path of a request."""
    routes = (route for part in (*_ROUTERS, pages.router) for route in part.routes if isinstance(route, Route))
    at_path = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
    found = {method for route in at_path for method in route.methods or ()}
    return found | {"HEAD"} if "GET" in found else found


def _translate(error: HTTPException) -> ServerError:
    match error.status_code:
        case 404:
            return NoSuchRouteError("There is nothing at this path: /openapi.json lists the paths that exist.")
        case 405:
            return MethodNotAllowedError("This path does not take this method: use one that the header Allow lists.")
        case _:
            return InvalidRequestError("The request cannot be read: send a well-formed one.")
