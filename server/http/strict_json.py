"""Strict parsing of JSON bodies: declared as JSON, a bounded number of values, no NaN or infinity, and no key twice."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response

from blora.server.errors import TooLargeError, UnsupportedMediaTypeError
from blora.server.schemas.validation import invalid_request

__all__ = ["Reader", "StrictJsonRoute"]

T = TypeVar("T")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Longest body, in bytes, that the event loop parses itself: waking a thread would take longer.
_SHORT = 16384
# A body may hold one JSON value for every 16 bytes of the largest allowed body.
_BYTES_PER_VALUE = 16
_LEAST_VALUES = 1024


class Reader:
    """A parser that handles long bodies in one thread, one after the other, to keep the event loop free.

    Args:
        max_body_bytes: the largest body, in bytes; the limit on values in a body follows from it.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._max_values = max(_LEAST_VALUES, max_body_bytes // _BYTES_PER_VALUE)
        self._reading = ThreadPoolExecutor(1, "read")

    async def json(self, body: bytes) -> Any:
        """Return the parsed body.

        Raises:
            TooLargeError: if it has too many values.
            ValueError: if it is not JSON, or an object in it has a key twice.
        """
        if len(body) <= _SHORT:
            return self._parse(body)
        return await self.run_in_thread(lambda: self._parse(body))

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Run a function in the reading thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, work)

    def close(self) -> None:
        """Shut the thread down."""
        self._reading.shutdown(wait=False, cancel_futures=True)

    def _parse(self, body: bytes) -> Any:
        bare = _without_strings(body)
        # The parser cannot be interrupted, and takes most of a second for a megabyte of half a million empty lists.
        if len(body) > self._max_values:
            n_values = bare.count(b",") + bare.count(b"[") + bare.count(b"{")
            if n_values > self._max_values:
                raise TooLargeError(
                    f"The body holds more than {self._max_values} values, which is the limit: send fewer inputs.",
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
    """A route that parses its body strictly.

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
            _check_headers(request)
            parsed = _ParsedRequest(request.scope, request.receive)
            body = await parsed.body()
            if body.startswith(_BYTE_ORDER_MARK):
                raise UnsupportedMediaTypeError(
                    "The body begins with a byte order mark: send JSON in UTF-8 without one."
                )
            if body:
                reader: Reader = request.app.state.reader
                try:
                    parsed.parsed = await reader.json(body)
                except ValueError as exc:
                    # The parser's message carries no request text.
                    detail = {"type": "json_invalid", "loc": ("body",), "ctx": {"error": str(exc)}}
                    raise invalid_request([detail]) from exc
            return await handler(parsed)

        return strict


def _check_headers(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError(
            "The body is not declared as JSON: send the header `content-type: application/json`."
        )
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("identity", ""):
        raise UnsupportedMediaTypeError(
            "The body has a content-encoding that this server cannot read: send it as gzip or zstd, or without one."
        )
