"""Tasks that may never end, such as reads from a stalled file system: a new thread for each task."""

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from blora.errors import AdapterError

__all__ = ["StalledError", "ThreadPerTask"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Limit on abandoned tasks that have not ended. Each keeps its thread and the memory of the data that it has read.
MOST_GIVEN_UP = 8


class StalledError(AdapterError):
    """The files of an adapter could not be read in time."""


class ThreadPerTask:
    """Runner that gives each task a new thread and abandons it at its deadline.

    A few tasks that never end would exhaust a pool. Abandoned threads do not keep the process from exiting; if such a
    task ends later, that is logged and has no other effect.

    Args:
        timeout_s: seconds that a task may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._running: set[object] = set()
        self._given_up: dict[object, tuple[str, object]] = {}  # descriptions of abandoned tasks, and what each read
        self._lock = threading.Lock()

    async def run(self, what: str, work: Callable[[], T], *, of: object = None) -> T:
        """Run a task, and return its result or raise its exception.

        Args:
            what: description of the task for messages.
            work: the task. It is never interrupted, so it must not change shared state.
            of: what the task reads, such as a path. While an abandoned task of the same description has not ended, no
                other one of the same starts.

        Raises:
            StalledError: if the task does not end in time, or earlier tasks have not ended.
        """
        self._check_room(what, of)
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
                logger.warning("%s ended after %.0f s; it had been abandoned", what, time.monotonic() - began)
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
                    self._given_up[done] = what, of
        if stalls:
            raise StalledError(
                f"{what} did not end within {self._timeout_s:g} s and was abandoned; check the file system, or raise "
                "--adapter-load-timeout-s"
            )
        return await done

    def _check_room(self, what: str, of: object) -> None:
        with self._lock:
            given_up = [*self._given_up.values()]
        if (what, of) in given_up or len(given_up) >= MOST_GIVEN_UP:
            stalled = sorted(described for described, _ in given_up)
            raise StalledError(
                f"{what} is not tried now, because earlier tasks, abandoned after {self._timeout_s:g} s, have not "
                f"ended: {', '.join(stalled)}; check the file system, or restart the server"
            )
