"""Strict parsing of JSON bodies: declared as JSON, a bounded number of values, no NaN or infinity, and no key twice."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from blora.server.errors import TooLargeError, UnsupportedMediaTypeError
from blora.server.http.reading import Reading
from blora.server.schemas.validation import invalid_request
from blora.server.settings import Settings

__all__ = ["StrictJsonRoute", "media_type", "parse"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A body may hold one JSON value for every 16 bytes of the largest allowed body.
_BYTES_PER_VALUE = 16
_LEAST_VALUES = 1024


def parse(body: bytes, max_body_bytes: int) -> Any:
    """Return parsed JSON.

    Args:
        body: the body.
        max_body_bytes: the largest body, in bytes; the limit on values in a body follows from it.

    Raises:
        TooLargeError: if it has too many values.
        ValueError: if it is not JSON, or an object in it has a key twice.
    """
    bare = _without_strings(body)
    max_values = max(_LEAST_VALUES, max_body_bytes // _BYTES_PER_VALUE)
    # The parser cannot be interrupted, and takes most of a second for a megabyte of half a million empty lists.
    if len(body) > max_values:
        n_values = bare.count(b",") + bare.count(b"[") + bare.count(b"{")
        if n_values > max_values:
            raise TooLargeError(
                f"The body holds more than {max_values} values, which is the limit: send fewer inputs.",
                code="body_too_large",
            )
    parsed = from_json(body, allow_inf_nan=False)
    if bare.count(b":") > _n_keys(parsed):  # the parser keeps the last of two equal keys
        raise ValueError("an object has a key twice")
    return parsed


def _n_keys(parsed: Any) -> int:
    """Return the number of keys of all objects in parsed JSON."""
    found, pending = 0, [parsed]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            found += len(value)
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


def _without_strings(body: bytes) -> bytes:
    """Return the JSON text without its strings.

    Takes time linear in the body. A regular expression for whole strings would take quadratic time on an unclosed
    string, since it starts again at every quote.
    """
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    return b"".join(unescaped.split(b'"')[::2])


class _ParsedRequest(Request):
    """A request whose body is already parsed."""

    parsed: Any = None

    async def json(self) -> Any:
        return self.parsed


class StrictJsonRoute(APIRoute):
    """A route that parses its body strictly, and leaves in the request's state how its further steps are run.

    Raises:
        InvalidRequestError: if the body is not JSON, or an object in it has a key twice.
        TooLargeError: if the body has too many values.
        UnsupportedMediaTypeError: if the body is not declared as application/json, has a content-encoding other
            than gzip and zstd, or begins with a byte order mark.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, called with a strictly parsed request."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            settings: Settings = request.app.state.service.settings
            deadline = asyncio.get_running_loop().time() + settings.timeout_s
            _check_headers(request)
            parsed = _ParsedRequest(request.scope, request.receive)
            body = await parsed.body()
            parsed.state.reading = reading = Reading(len(body), deadline)
            if body.startswith(_BYTE_ORDER_MARK):
                raise UnsupportedMediaTypeError(
                    "The body begins with a byte order mark: send JSON in UTF-8 without one."
                )
            if body:
                try:
                    parsed.parsed = await reading.run(
                        parsed, partial(parse, body, settings.max_body_bytes), first_step=True
                    )
                except ValueError as exc:
                    # The parser's message carries no request text.
                    detail = {"type": "json_invalid", "loc": ("body",), "ctx": {"error": str(exc)}}
                    raise invalid_request([detail]) from exc
            return await handler(parsed)

        return strict


def media_type(request: Request) -> str:
    """Return the media type of a request's body in small letters, without parameters; empty if it has none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_headers(request: Request) -> None:
    if media_type(request) != "application/json":
        raise UnsupportedMediaTypeError(
            "The body is not declared as JSON: send the header `content-type: application/json`."
        )
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("identity", ""):
        raise UnsupportedMediaTypeError(
            "The body has a content-encoding that this server cannot read: send it as gzip or zstd, or without one."
        )
