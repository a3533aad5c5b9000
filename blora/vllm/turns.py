"""Requests that may run together, requests of which each runs alone, and requests that fail as one."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["Turns", "all_of"]

T = TypeVar("T")


class Turns:
    """Turns of requests, in the order in which they ask.

    Args:
        concurrency: most requests together.
    """

    def __init__(self, concurrency: int) -> None:
        self._room = asyncio.Semaphore(concurrency)
        self._gate = asyncio.Lock()  # held by one that runs alone, or waits for others to end
        self._running = 0
        self._none_runs = asyncio.Event()
        self._none_runs.set()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Wait until there is room, and none runs alone."""
        async with self._gate:  # also while there is no room, so that none that asks later goes first
            await self._room.acquire()
            self._running += 1
            self._none_runs.clear()
        try:
            yield
        finally:
            self._room.release()
            self._running -= 1
            if not self._running:
                self._none_runs.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait until no other one runs; those that ask later wait for this one."""
        async with self._gate:
            await self._none_runs.wait()
            yield


async def all_of(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Return the results of all work, or raise its first error once the rest is cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
