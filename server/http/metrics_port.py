"""A port for the metrics and nothing else: a firewall can let Prometheus in without letting it ask questions."""

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from blora.server.errors import NoSuchRouteError, ServerError

__all__ = ["MetricsPort"]


class MetricsPort:
    """Gives /metrics to the one port that is for them, and everything else to the other.

    Args:
        app: the app around which this stands.
        port: the metrics' own.
        refuse: the response to an error.
    """

    def __init__(self, app: ASGIApp, port: int, refuse: Callable[[ServerError], Response]) -> None:
        self._app = app
        self._port = port
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
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
