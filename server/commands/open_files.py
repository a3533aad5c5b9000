"""How many files and sockets the process may have open, and what happens where that is not enough."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from blora.server.monitoring.logs import ThrottledLogger

__all__ = ["connections_that_fit", "hush_accept_errors", "raise_soft_limit"]

logger = logging.getLogger(__name__)

# For everything but the clients' connections: model, log, adapters that are read, Redis, vLLM, the collector.
_RESERVED = 128


def raise_soft_limit() -> None:
    """Raises the soft limit of open files to the hard one, where the system knows either."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_that_fit(most: int) -> int:
    """Return how many connections may be open at once: `most`, or fewer where the limit of open files is lower."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    fitting = max(soft - _RESERVED, soft // 2, 1)
    if fitting < most:
        logger.warning(
            "At most %d connections will be open at once, not %d, for the process may open only %d files",
            fitting,
            most,
            soft,
        )
    return min(most, fitting)


def hush_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Lets the loop log connections that could not be accepted once a second at most, and in one line.

    asyncio reports each one with a traceback, a hundred thousand of them in 15 s where all files are in use.
    """
    throttled_log = ThrottledLogger(logger)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if str(context.get("message", "")).startswith("socket.accept() out of system resource"):
            throttled_log.warning(f"Connections cannot be accepted: {context.get('exception')}")
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
