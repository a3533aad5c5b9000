"""Reading of questions in a thread that does not keep the program alive."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import Generic, TypeVar

__all__ = ["Reader"]

T = TypeVar("T")


class Reader(Generic[T]):
    """Iterator that a thread of its own reads, on demand and in the caller's context.

    One thread, because a database cursor may be bound to a thread; a daemon, because a pipe or a queue may never go on.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._wanted: SimpleQueue[Future[T | None] | None] = SimpleQueue()
        threading.Thread(
            target=copy_context().run, args=(_read, source, self._wanted), name="blora-questions", daemon=True
        ).start()

    async def take(self) -> T | None:
        """Return the next item, or None after the last."""
        item: Future[T | None] = Future()
        self._wanted.put(item)
        return await asyncio.wrap_future(item)

    def close(self) -> None:
        """End the thread, once the source lets go of it."""
        self._wanted.put(None)


def _read(source: Iterator[T], wanted: SimpleQueue[Future[T | None] | None]) -> None:
    while (item := wanted.get()) is not None:
        if item.set_running_or_notify_cancel():
            try:
                item.set_result(next(source, None))
            except BaseException as exc:  # as an executor does
                item.set_exception(exc)
