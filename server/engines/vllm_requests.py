"""The requests that a run sends to vLLM: so many at a time, none while the run is parked, none that nobody wants."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blora.server.scheduling.control import Control

__all__ = ["VllmRequests"]


class VllmRequests:
    """The requests of one run.

    Those that wait do so here rather than in the client, where the requests of runs that go first would stand behind
    them.

    Args:
        control: of the run.
        concurrency: most requests at a time.
    """

    def __init__(self, control: Control, concurrency: int) -> None:
        self._control = control
        self._room = asyncio.Semaphore(concurrency)
        self._under_way = 0
        self._last_answer = time.monotonic()

    @property
    def unanswered_s(self) -> float:
        """Seconds since the last answer, or since the first request while there is none."""
        return time.monotonic() - self._last_answer if self._under_way else 0.0

    @asynccontextmanager
    async def sending(self, payload: object = None) -> AsyncIterator[None]:
        """Wait for a request's turn, and take note of its answer.

        Args:
            payload: the job that the request is for; None for the whole run.

        Raises:
            AbandonedError: if the result is not wanted any more.
        """
        async with self._room:
            await self._control.turn()
            self._control.look(payload)
            if not self._under_way:
                self._last_answer = time.monotonic()
            self._under_way += 1
            try:
                yield
                self._last_answer = time.monotonic()
            finally:
                self._under_way -= 1

    async def give_way(self) -> None:
        """Wait if the run is to wait and none of its requests is under way.

        Raises:
            AbandonedError: if no result of the run is wanted any more.
        """
        if not self._under_way:
            await self._control.give_way()
