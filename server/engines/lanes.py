"""Threads for runs that wait for each other: one computes, the others are parked at a checkpoint."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from blora.server.engines.jobs import in_thread

__all__ = ["Lanes"]

T = TypeVar("T")


class Lanes:
    """The first idle of several threads takes the work, so that there are no more of them than runs at once.

    Args:
        first: the thread that computes while nothing is parked.
    """

    def __init__(self, first: ThreadPoolExecutor) -> None:
        self._busy = [False]
        self._threads = [first]

    async def run(self, work: Callable[[], T]) -> T:
        """What the work returns, done in a thread that nothing else runs in."""
        lane = next((lane for lane, busy in enumerate(self._busy) if not busy), len(self._busy))
        if lane == len(self._busy):
            self._threads.append(ThreadPoolExecutor(1, f"compute-{lane}"))
            self._busy.append(False)
        self._busy[lane] = True
        try:
            return await in_thread(self._threads[lane], work)
        finally:
            self._busy[lane] = False

    def close(self) -> None:
        """Lets go of the threads."""
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)
