"""The requests that a run sends to vLLM: so many at a time, none while the run is parked, none that nobody wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blora.server.scheduling.control import Control

__all__ = ["VllmRequests"]


class VllmRequests:
    """The requests of one run.

    Those that wait do so here rather than in the client, where they would count as sent, and the requests of runs that
    go first would stand behind them.

    Args:
        control: of the run.
        concurrency: most requests at a time.
    """

    def __init__(self, control: Control, concurrency: int) -> None:
        self._control = control
        self._room = asyncio.Semaphore(concurrency)
        self._alone = asyncio.Semaphore(1)
        self._n_waiting = self._n_under_way = 0

    @asynccontextmanager
    async def sending(self, payload: object = None, *, alone: bool = False) -> AsyncIterator[None]:
        """Wait for a request's turn.

        Args:
            payload: the job that the request is for; None for the whole run.
            alone: whether the client sends the request with no other beside it.

        Raises:
            AbandonedError: if the result is not wanted any more.
        """
        async with self._alone if alone else self._room:
            self._n_waiting += 1
            try:
                await self._control.turn()
            finally:
                self._n_waiting -= 1
            self._control.look(payload)
            self._n_under_way += 1
            try:
                yield
            finally:
                self._n_under_way -= 1

    async def give_way(self) -> None:
        """Wait if the run is to wait and its requests do; a run that sends none any more goes on to its end.

        Raises:
            AbandonedError: if no result of the run is wanted any more.
        """
        if self._n_waiting and not self._n_under_way:
            await self._control.give_way()
