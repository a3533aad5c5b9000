"""Threads for runs that wait for each other: one computes, the others are parked at a checkpoint."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from blora.server.engines.jobs import in_thread

__all__ = ["Lanes"]

T = TypeVar("T")


class Lanes:
    """Runs work in one thread, or in a thread of its own where that one is taken.

    A further thread ends with its work. Each thread that computes has a team of OpenMP's, whose members wait for work
    without sleeping only as long as there are no more of them than cores: a team that was left behind would slow down
    every later pass (by 1.7 on two cores).

    Args:
        first: the thread that computes while nothing is parked.
    """

    def __init__(self, first: ThreadPoolExecutor) -> None:
        self._first = first
        self._is_taken = False

    async def run(self, work: Callable[[], T]) -> T:
        """Return what the work returns, done in a thread in which nothing else runs."""
        if self._is_taken:
            thread = ThreadPoolExecutor(1, "compute-beside")
            try:
                return await in_thread(thread, work)
            finally:
                thread.shutdown(wait=False)
        self._is_taken = True
        try:
            return await in_thread(self._first, work)
        finally:
            self._is_taken = False

    def close(self) -> None:
        """Let go of the first thread; others end with what they do."""
        self._first.shutdown(wait=False, cancel_futures=True)
