"""Answers on connections beyond the limit: to probes and Prometheus as usual, and a refusal to all others."""

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blora.server.http.middleware import RequestId, SafeHeaders

__all__ = ["Reserve"]

_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


class Reserve:
    """ASGI application for a connection of the reserve, which is closed after one response.

    Args:
        app: the server's application.
        refuse: makes the refusal.
    """

    def __init__(self, app: ASGIApp, refuse: Callable[[], Response]) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        app = self._app if scope["path"] in _PATHS else RequestId(SafeHeaders(self._refuse()))
        await app(scope, receive, send_last)
