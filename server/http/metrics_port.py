"""A separate port for /metrics, so that a firewall can admit Prometheus without admitting it to predictions."""

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from blora.server.errors import NoSuchRouteError, ServerError

__all__ = ["MetricsPort"]


class MetricsPort:
    """ASGI middleware that serves /metrics on one port and every other path on the other.

    Args:
        app: the wrapped ASGI application.
        port: the port of /metrics.
        refuse: makes the response for an error.
    """

    def __init__(self, app: ASGIApp, port: int, refuse: Callable[[ServerError], Response]) -> None:
        self._app = app
        self._port = port
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http":
            is_theirs = scope["server"] is not None and scope["server"][1] == self._port
            if is_theirs != (scope["path"] == "/metrics"):
                where = (
                    "This port serves /metrics alone."
                    if is_theirs
                    else "The metrics are on the port of --metrics-port."
                )
                error = NoSuchRouteError(f"There is nothing at this path. {where}")
                await self._refuse(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
