"""Work that may never end, such as reading from a file system that stalls: each piece in a thread of its own."""

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from blora.errors import AdapterError

__all__ = ["OwnThread", "StalledError"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Pieces that were given up and have not ended. Each keeps its thread, and what it has read.
MOST_GIVEN_UP = 8


class StalledError(AdapterError):
    """An adapter that could not be read in time."""


class OwnThread:
    """Runs each piece of work in a new thread, and gives it up at its deadline.

    A pool would be used up by a few pieces that never end. Threads that were given up do not keep the process from
    ending; what becomes of them later is logged, and has no other effect.

    Args:
        timeout_s: how long a piece may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._running: set[object] = set()
        self._given_up: dict[object, str] = {}  # what they were to do
        self._lock = threading.Lock()

    async def run(self, what: str, work: Callable[[], T]) -> T:
        """Return what the work returns, or raise what it raises.

        Args:
            what: the work in words, for messages. While one that was given up has not ended, no other of the same words
                begins.
            work: is not interrupted, and so must not change what others see.

        Raises:
            StalledError: if it does not end in time, or others of before have not ended.
        """
        self._check_room(what)
        loop, began = asyncio.get_running_loop(), time.monotonic()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = work()
            except BaseException as exc:
                end(done.set_exception, exc)
            else:
                end(done.set_result, result)

        def end(tell: Callable[[Any], object], result: object) -> None:
            with self._lock:
                self._running.discard(done)
                late = self._given_up.pop(done, None) is not None
            if late:
                logger.warning("%s ended after %.0f s, when it had been given up", what, time.monotonic() - began)
            else:
                loop.call_soon_threadsafe(tell, result)

        self._running.add(done)
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(run,), name=what, daemon=True).start()
        try:
            await asyncio.wait({done}, timeout=self._timeout_s)
        finally:
            with self._lock:
                stalls = done in self._running
                if stalls:
                    self._given_up[done] = what
        if stalls:
            raise StalledError(
                f"{what} did not end within {self._timeout_s:g} s and was given up; check the file system, or raise "
                "--adapter-load-timeout-s"
            )
        return await done

    def _check_room(self, what: str) -> None:
        with self._lock:
            stalled = sorted(self._given_up.values())
        if what in stalled or len(stalled) >= MOST_GIVEN_UP:
            raise StalledError(
                f"{what} is not tried now, for what was given up after {self._timeout_s:g} s has not ended: "
                f"{', '.join(stalled)}; check the file system, or restart the server"
            )
