"""The limit on open files and sockets of the process."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from blora.server.monitoring.logs import ThrottledLogger

__all__ = ["connections_that_fit", "hush_accept_errors", "raise_soft_limit"]

logger = logging.getLogger(__name__)

# File descriptors for everything but the clients' connections: model, log, adapters, Redis, vLLM, the collector.
_RESERVED = 128


def raise_soft_limit() -> None:
    """Raise the soft limit on open files to the hard limit, if the system has such limits."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_that_fit(most: int) -> int:
    """Return the number of connections that fit under the limit on open files, at most `most`."""
    try:
        import resource
    except ImportError:  # Windows has no limit on open files
        return most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    fitting = max(soft - _RESERVED, soft // 2, 1)
    if fitting < most:
        logger.warning(
            "The server will accept at most %d connections, not %d, because the process may open only %d files",
            fitting,
            most,
            soft,
        )
    return min(most, fitting)


def hush_accept_errors(loop: asyncio.AbstractEventLoop) -> None:
    """Make the event loop log connections that cannot be accepted in one line, at most once per second.

    asyncio logs each of them with a traceback: a hundred thousand in 15 s once all file descriptors are in use.
    """
    throttled_log = ThrottledLogger(logger)

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if str(context.get("message", "")).startswith("socket.accept() out of system resource"):
            throttled_log.warning(f"Connections cannot be accepted: {context.get('exception')}")
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
