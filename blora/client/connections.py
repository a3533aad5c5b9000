"""Connections of one event loop, and the calls that use them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from blora.client.errors import UnreachableError
from blora.client.exchange import closed
from blora.client.sending import send

__all__ = ["Connections"]


class Connections:
    """Connections of one event loop, and the calls that use them.

    Args:
        http: the connections, without a limit of their own; `aclose` closes them.
        most: most open connections.
    """

    def __init__(self, http: httpx.AsyncClient, most: int) -> None:
        self.http = http
        self._free = asyncio.Semaphore(most)
        self._calls: dict[asyncio.Timeout, asyncio.Event] = {}  # each call in flight, and the event of its end

    async def aclose(self) -> None:
        """End the calls in flight, each with the ClientError of a closed client, and close the connections."""
        calls = dict(self._calls)
        for call in calls:
            call.reschedule(0)
        for ended in calls.values():
            await ended.wait()
        await self.http.aclose()

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Return the response, once a connection is free.

        Raises:
            httpx.RequestError: if there is none.
        """
        async with self._free:
            return await send(self.http, request)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Hold a call, which `aclose` ends; a cancellation by the caller stays one.

        Raises:
            ClientError: if `aclose` ended the call; UnreachableError if the interpreter is ending.
        """
        try:
            async with asyncio.timeout(None) as call:
                self._calls[call] = ended = asyncio.Event()
                try:
                    yield
                finally:
                    del self._calls[call]
                    ended.set()
        except TimeoutError:
            if not call.expired():
                raise
            raise closed() from None
        except RuntimeError as exc:
            if threading.main_thread().is_alive():
                raise
            raise UnreachableError(  # for example, asyncio looks up no more names
                f"got {exc!r} because the interpreter is ending, expected a call before the end of the main thread: "
                "let the main thread wait for the threads that call, by join()"
            ) from exc
