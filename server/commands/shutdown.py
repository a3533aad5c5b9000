"""Graceful shutdown: wait for load balancers to notice, finish the accepted requests, and exit."""

import asyncio
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType

import uvicorn

from blora.server.commands.open_files import connections_that_fit, hush_accept_errors
from blora.server.http.connections import limited_protocol
from blora.server.http.responses import refuse
from blora.server.prediction.service import Service

__all__ = ["DrainingServer", "leave"]

logger = logging.getLogger(__name__)

# Seconds for reading requests that are in transit when the listener closes.
_LAST_READ_S = 0.1
# Seconds for uvicorn to write the error responses after the drain has timed out.
_LAST_WRITE_S = 2
# Seconds within which idle threads end after the server has stopped.
_LAST_WORK_S = 1.0


class DrainingServer(uvicorn.Server):
    """Uvicorn server whose shutdown loses no accepted request.

    At SIGTERM, /readyz turns to 503 while requests are still served for `drain_delay_s`. Then the listener closes, and
    requests in flight have `drain_timeout_s` to finish before they get 503. A second signal ends that time at once.

    Args:
        config: uvicorn's configuration, whose timeouts and protocol are set here.
        service: the service to drain.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        config.timeout_graceful_shutdown = math.ceil(service.settings.drain_timeout_s) + _LAST_WRITE_S
        config.http = limited_protocol(
            read_timeout_s=service.settings.read_timeout_s,
            max_connections=connections_that_fit(service.settings.max_connections),
            refuse=partial(refuse, service),
        )
        config.ws = "none"  # no WebSocket, whatever packages are installed
        config.timeout_keep_alive = service.settings.keep_alive_s
        super().__init__(config)
        self._service = service
        self._enough = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal, then drain."""
        self._loop = asyncio.get_running_loop()
        hush_accept_errors(self._loop)
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining; the exit status does not show the signal."""
        if self._loop is not None:  # the signal may interrupt the loop itself
            self._loop.call_soon_threadsafe(self._signalled, sig)

    def stop(self) -> None:
        """Schedule the closing of the listener and the drain."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener and wait for the requests in flight."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LAST_READ_S)
        closing = asyncio.create_task(super().shutdown(sockets))
        enough = asyncio.create_task(self._enough.wait())
        await asyncio.wait(
            {closing, enough},
            timeout=self._service.settings.drain_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        enough.cancel()
        if not closing.done():
            await self._service.stop()
        await closing

    def _signalled(self, sig: int) -> None:
        if self._service.draining:
            self.stop()
            self._enough.set()
            return
        logger.info("%s: finishing the requests that were accepted", signal.Signals(sig).name)
        self._service.begin_drain()
        delay_s = self._service.settings.drain_delay_s if sig == signal.SIGTERM else 0
        asyncio.get_running_loop().call_later(delay_s, self.stop)


def leave(code: int, *, besides: Sequence[threading.Thread]) -> int:
    """Exit the process at once if a thread still works, for example loading a model, because no client waits any more.

    Args:
        code: the exit code.
        besides: threads that do not belong to the server.

    Returns:
        The exit code, if no thread keeps the process from exiting.
    """
    deadline = time.monotonic() + _LAST_WORK_S
    others = [thread for thread in threading.enumerate() if thread not in besides and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        logging.shutdown()
        os._exit(code)
    return code
