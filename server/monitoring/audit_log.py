"""The trail that refused requests leave in the log: from where, for what; never the key."""

import logging
import time
from collections.abc import Callable
from urllib.parse import quote

from starlette.types import Scope

from blora.server.errors import ServerError
from blora.server.keys import CLIENT
from blora.server.monitoring.logs import write_down

__all__ = ["AuditLog"]

logger = logging.getLogger(__name__)

# Whoever may not ask must not fill the disk either. The metrics count all.
LINES_A_SECOND = 10
_MOST_CHARACTERS = 200
# What a path or an address may hold as it is; anything else could begin a line or a field of its own.
_PLAIN = "/:@+,;!$&'()*~[]"


class AuditLog:
    """Writes a line for each request that is refused for its key, up to ten a second.

    Args:
        clock: seconds, which never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = -1
        self._lines = 0
        self._unlogged = 0

    def refused(self, error: ServerError, scope: Scope) -> None:
        """Writes down who was refused what, and how many others were since the last line."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines >= LINES_A_SECOND:
            self._unlogged += 1
            return
        self._lines += 1
        peer = scope.get("client")
        write_down(
            logger,
            error.code,
            level=logging.WARNING,
            peer=_plain(peer[0]) if peer else None,
            client=CLIENT.get(),
            method=scope["method"],
            path=_plain(scope["path"]),
            unlogged=self._unlogged or None,
        )
        self._unlogged = 0


def _plain(text: str) -> str:
    return quote(text, safe=_PLAIN)[:_MOST_CHARACTERS]
