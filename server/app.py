"""The application: routes, errors and middleware around one service."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from blora.server.access import Door, Rate
from blora.server.engines.protocol import Engine
from blora.server.errors import (
    DisconnectedError,
    InvalidRequestError,
    MethodNotAllowedError,
    NoSuchRouteError,
    ServerError,
)
from blora.server.keys import Keys
from blora.server.lifecycle import Service
from blora.server.logs import write_down
from blora.server.metrics_port import MetricsPort
from blora.server.middleware import BodyLimit, CatchAll, CloseWhileDraining, RequestId, SafeHeaders
from blora.server.routes import error_response, router
from blora.server.settings import Settings
from blora.server.validation import invalid_request

__all__ = ["create_app"]

logger = logging.getLogger(__name__)


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The server as an ASGI application, whose lifespan loads the model and drains the queue.

    Args:
        settings: the operator's.
        engine: computes the probabilities; the one that the settings name by default.
    """
    service = Service(settings, engine or _engine(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="blora",
        summary="Answers with their uncertainty, from a Bayesian-LoRA language model.",
        version=service.build.version,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    _handle_errors(app, service)
    # The last one added stands outermost.
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        timeout_s=settings.read_timeout_s,
        refuse=lambda error: _refuse(service, error),
    )
    app.add_middleware(
        Door,
        keys=Keys(settings.api_keys) if settings.api_keys is not None else None,
        rate=Rate(settings.requests_per_minute),
        refuse=lambda error: _refuse(service, error),
    )
    app.add_middleware(CatchAll, refuse=lambda error: _refuse(service, error))
    app.add_middleware(CloseWhileDraining, draining=lambda: service.draining)
    if settings.metrics_port:
        app.add_middleware(MetricsPort, port=settings.metrics_port, refuse=lambda error: _refuse(service, error))
    app.add_middleware(SafeHeaders)
    app.add_middleware(RequestId)
    service.traces.attach(app)
    return app


def _engine(settings: Settings) -> Engine:
    # The model's libraries load here, and not before.
    if settings.engine == "vllm":
        from blora.server.engines.vllm_engine import VllmEngine

        return VllmEngine(settings)
    from blora.server.engines.torch_engine import TorchEngine

    return TorchEngine(settings)


def _refuse(service: Service, error: ServerError) -> Response:
    """The response to a request that did not reach the predictor, which counts its own."""
    service.metrics.failed(error)
    write_down(logger, error.code)
    return error_response(error)


def _handle_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(ServerError)
    async def refused(request: Request, error: ServerError) -> Response:
        return _refuse(service, error)

    @app.exception_handler(DisconnectedError)
    async def disconnected(request: Request, error: DisconnectedError) -> Response:
        return error_response(error)  # nobody reads it, and the predictor has counted it

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refuse(service, invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def from_starlette(request: Request, error: HTTPException) -> Response:
        response = _refuse(service, _translate(error))
        response.headers.update(error.headers or {})
        return response


def _translate(error: HTTPException) -> ServerError:
    match error.status_code:
        case 404:
            return NoSuchRouteError("got a path that does not exist, expected one of /openapi.json's")
        case 405:
            return MethodNotAllowedError("got a method that this path has not, expected one of Allow's")
        case _:
            return InvalidRequestError("got a request that cannot be read, expected a well-formed one")
