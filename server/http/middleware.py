"""What happens around every request: an id, safe headers, a limit on the body, a net, and goodbyes while draining."""

import asyncio
import logging
import re
import uuid
from collections.abc import Callable
from typing import ClassVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blora.server.errors import (
    InternalError,
    InvalidHttpError,
    ServerError,
    SlowRequestError,
    TooLargeError,
)
from blora.server.http.inflow import Inflow
from blora.server.keys import CLIENT
from blora.server.monitoring.logs import REQUEST_ID

__all__ = ["BodyLimit", "CatchAll", "CloseWhileDraining", "HeadAsGet", "OneLength", "RequestId", "SafeHeaders"]

logger = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestId:
    """Gives each answer the request's own x-request-id, or a new one if that is absent or odd."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        REQUEST_ID.set(request_id)
        await self._app(scope, receive, send_with_id)


class SafeHeaders:
    """Tells browsers and proxies to guess no content type, keep no answer, and show none inside another page."""

    HEADERS: ClassVar[dict[str, str]] = {
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.HEADERS)
            await send(message)

        await self._app(scope, receive, send_safely if scope["type"] == "http" else send)


class CloseWhileDraining:
    """Asks clients to leave their kept-alive connections once the server is on its way out.

    Args:
        app: the app around which this stands.
        draining: whether it is.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""

        async def send_goodbye(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining():
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_goodbye if scope["type"] == "http" else send)


class CatchAll:
    """FairShare what nobody foresaw into an answer like any other, as long as none has begun.

    Args:
        app: the app around which this stands.
        refuse: the response to an error.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[ServerError], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
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


class OneLength:
    """Refuses a request that gives the length of its body in two ways, and closes the connection.

    A proxy in front may believe the other one, and what follows would be a second request that it has not seen;
    see RFC 9112, section 6.1.

    Args:
        app: the app around which this stands.
        refuse: the response to an error.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[ServerError], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        app = self._app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "transfer-encoding" in headers and "content-length" in headers:
                error = InvalidHttpError("The request has both Content-Length and Transfer-Encoding: send one of them.")
                app = self._refuse(error)
                app.headers["connection"] = "close"
        await app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_no_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, send_no_body)


class BodyLimit:
    """Reads bodies whole before anything parses them, and refuses one as soon as it is too long or too slow.

    Args:
        app: the app around which this stands.
        max_bytes: the longest body.
        timeout_s: seconds for a body to arrive.
        refuse: the response to an error.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, timeout_s: float, refuse: Callable[[ServerError], Response]
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._refuse = refuse
        self._inflow = Inflow()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            error: ServerError = SlowRequestError(
                f"The body took more than {self._timeout_s:g} s to arrive, which is the limit: send it at once."
            )
        except TooLargeError as exc:
            error = exc
        else:
            if body is not None:
                await self._app(scope, _replay(body, receive), send)
            return
        await self._refuse(error)(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None if the client left in the middle of it."""
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
            if delay_s := self._inflow.delay(CLIENT.get(), len(body) - len(piece), len(piece)):
                await asyncio.sleep(delay_s)
        return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body in one piece, and then whatever really comes."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
