"""Bodies are JSON that says it is JSON, and JSON has no NaN, no infinity and no half characters."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from blora.server.errors import UnsupportedMediaTypeError

__all__ = ["StrictJsonRoute"]


class _StrictJsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False)
        except ValueError as exc:
            # The one exception that FastAPI reports as invalid JSON; it carries no request text.
            raise json.JSONDecodeError(str(exc), "", 0) from exc


class StrictJsonRoute(APIRoute):
    """A route whose body is parsed strictly.

    Raises:
        UnsupportedMediaTypeError: if a body is not declared as application/json.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a stricter request."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "application/json":
                raise UnsupportedMediaTypeError(
                    "got a body that is not declared as JSON, expected the header "
                    "content-type: application/json: add it"
                )
            return await handler(_StrictJsonRequest(request.scope, request.receive))

        return strict
