"""ASGI middleware: request ids, security headers, body limits, unexpected errors, and closing while draining."""

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blora.server.errors import (
    InternalError,
    InvalidHttpError,
    RateLimitedError,
    ServerError,
    SlowRequestError,
    TooLargeError,
    UnsupportedMediaTypeError,
)
from blora.server.http.authentication import owner
from blora.server.http.body_pacer import BodyPacer
from blora.server.http.compression import ENCODINGS, decompress
from blora.server.monitoring.logs import REQUEST_ID

__all__ = ["BodyLimit", "CatchAll", "CloseWhileDraining", "HeadAsGet", "RequestId", "SafeHeaders", "UnambiguousLength"]

logger = logging.getLogger(__name__)

# Waits after bytes of a body: takes the number of bytes received before, and of those received now.
_Pace = Callable[[int, int], Awaitable[None]]
_TYPESAFE_PATHS = frozenset({"/v1/systemone", "/v1/models"})
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """Add an x-request-id to each response: the request's own, or a new one if that is absent or malformed.

    Responses of TypeSafe's routes have it as x-typesafe-request-id too, which clients of that protocol show in errors.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if scope["path"] in _TYPESAFE_PATHS:
                    headers["x-typesafe-request-id"] = request_id
            await send(message)

        REQUEST_ID.set(request_id)
        await self._app(scope, receive, send_with_id)


class SafeHeaders:
    """Add headers that forbid content sniffing, caching and framing.

    A page keeps its own content security policy; every other response may load nothing.
    """

    POLICY: ClassVar[str] = "default-src 'none'; frame-ancestors 'none'"
    HEADERS: ClassVar[dict[str, str]] = {
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.HEADERS)
                headers.setdefault("content-security-policy", self.POLICY)
            await send(message)

        await self._app(scope, receive, send_safely if scope["type"] == "http" else send)


class CloseWhileDraining:
    """Ask clients to close kept-alive connections while the server drains.

    Args:
        app: the wrapped ASGI application.
        draining: returns whether the server drains.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""

        async def send_goodbye(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining():
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_goodbye if scope["type"] == "http" else send)


class CatchAll:
    """Turn an unexpected exception into an error response, unless a response has begun.

    Args:
        app: the wrapped ASGI application.
        refuse: makes the response for an error.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[ServerError], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        begun = False

        async def send_noting(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception:
            if scope["type"] != "http" or begun:
                raise
            logger.exception("A request failed unexpectedly")
            error = InternalError("The server failed unexpectedly: report this as a bug.")
            await self._refuse(error)(scope, receive, send)


class UnambiguousLength:
    """Refuse a request that gives the length of its body in two ways, and close the connection.

    A proxy in front may use the other length and would then miss a second request hidden in the body (request
    smuggling, RFC 9112, section 6.1).

    Args:
        app: the wrapped ASGI application.
        refuse: makes the response for an error.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[ServerError], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        app = self._app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "transfer-encoding" in headers and "content-length" in headers:
                error = InvalidHttpError("The request has both Content-Length and Transfer-Encoding: send one of them.")
                app = self._refuse(error)
                app.headers["connection"] = "close"
        await app(scope, receive, send)


class HeadAsGet:
    """Answer HEAD like GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_no_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, send_no_body)


class BodyLimit:
    """Read each body in full before it is parsed, decompress it, and refuse it once it is too long or too slow.

    Args:
        app: the wrapped ASGI application.
        max_bytes: largest body, in bytes, before and after decompression.
        timeout_s: seconds for a body to arrive, without the time for which the server itself makes it wait, and most
            seconds of these waits together.
        refuse: makes the response for an error.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, timeout_s: float, refuse: Callable[[ServerError], Response]
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._refuse = refuse
        self._pacer = BodyPacer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            ends = asyncio.get_running_loop().time() + self._timeout_s
            async with asyncio.timeout_at(ends) as limit:
                pace = partial(self._pace, scope, limit, ends)
                body = await self._read(scope, receive, pace)
                if body and (encoding := _encoding(scope)) is not None:
                    body = await self._decompress(body, encoding, pace)
                    scope = _without_encoding(scope, len(body))
        except TimeoutError:
            error: ServerError = SlowRequestError(
                f"The body took more than {self._timeout_s:g} s to arrive, which is the limit: send it at once."
            )
        except (RateLimitedError, TooLargeError, UnsupportedMediaTypeError) as exc:
            error = exc
        else:
            if body is not None:
                await self._app(scope, _replay(body, receive), send)
            return
        await self._refuse(error)(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive, pace: _Pace) -> bytes | None:
        """Return the body, or None if the client disconnected before its end."""
        too_long = TooLargeError(
            f"The body is longer than {self._max_bytes} bytes, which is the limit: shorten it or send fewer inputs.",
            code="body_too_large",
        )
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise too_long
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            body += piece
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                raise too_long
            await pace(len(body) - len(piece), len(piece))
        return bytes(body)

    async def _decompress(self, body: bytes, encoding: str, pace: _Pace) -> bytes:
        result = await asyncio.to_thread(decompress, body, encoding, self._max_bytes)
        await pace(min(len(body), len(result)), max(0, len(result) - len(body)))
        return result

    async def _pace(self, scope: Scope, limit: asyncio.Timeout, first_ends: float, had: int, n_bytes: int) -> None:
        """Wait until the owner's bytes are paid for; each wait puts off the body's limit, which was `first_ends`."""
        ends = limit.when()
        assert ends is not None  # the limit is in force
        waited_s = ends - first_ends
        most_s = max(0.0, self._timeout_s - waited_s)
        if delay_s := self._pacer.delay(owner(scope), had, n_bytes, most_s=most_s):
            limit.reschedule(ends + delay_s)
            await asyncio.sleep(delay_s)


def _encoding(scope: Scope) -> str | None:
    """Return the encoding that a body has to be decompressed from; None for another one, several or none."""
    encoding = ", ".join(Headers(scope=scope).getlist("content-encoding")).strip().lower()
    return encoding if encoding in ENCODINGS else None


def _without_encoding(scope: Scope, n_bytes: int) -> Scope:
    """Return the scope of a request whose body has been decompressed to `n_bytes` bytes."""
    kept = [pair for pair in scope["headers"] if pair[0] not in (b"content-encoding", b"content-length")]
    return {**scope, "headers": [*kept, (b"content-length", str(n_bytes).encode())]}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body in one piece and then passes further messages through."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
