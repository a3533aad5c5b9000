"""Log lines about requests that are refused for their key: peer, method and path, never the key itself."""

import logging
import time
from collections.abc import Callable
from urllib.parse import quote

from starlette.types import Scope

from blora.server.errors import ServerError
from blora.server.keys import client_name
from blora.server.monitoring.logs import log_outcome

__all__ = ["AuditLog"]

logger = logging.getLogger(__name__)

# Limit on lines, so that unauthorised clients cannot fill the disk; the metrics count all refusals.
LINES_A_SECOND = 10
_MOST_CHARACTERS = 200
# Characters of a path or an address that are logged unescaped; others could forge lines or fields.
_PLAIN = "/:@+,;!$&'()*~[]"


class AuditLog:
    """Log of requests that are refused for their key, at most ten lines per second.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = -1
        self._lines = 0
        self._unlogged = 0

    def refused(self, error: ServerError, scope: Scope) -> None:
        """Log a refused request, with the number of refusals that were not logged since the last line."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_A_SECOND:
            self._unlogged += 1
            return
        self._lines += 1
        peer = scope.get("client")
        log_outcome(
            logger,
            error.code,
            level=logging.WARNING,
            peer=_plain(peer[0]) if peer else None,
            client=client_name(),
            method=scope["method"],
            path=_plain(scope["path"]),
            unlogged=self._unlogged or None,
        )
        self._unlogged = 0


def _plain(text: str) -> str:
    return quote(text, safe=_PLAIN)[:_MOST_CHARACTERS]
