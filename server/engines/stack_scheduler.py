"""Runs that share one thread: at its checkpoints one run can wait while the thread computes another.

Each thread that computes has a team of OpenMP's, whose members wait for work without sleeping only as long as there are
no more of them than cores. With a second thread, and so a second team, every pass takes 1.7 times as long on two cores.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet

from blora.server.scheduling.control import Control

__all__ = ["StackScheduler"]

T = TypeVar("T")


class StackScheduler:
    """Runs pieces of work in one thread, each on a stack of its own.

    All of it is under `torch.inference_mode`, for the thread has one such mode, and work that leaves the block while
    other work waits inside it would change the mode for both.

    Args:
        thread: an executor of one thread.
    """

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._queued: set[Future[Any]] = set()  # results of pieces that have not begun

    async def run(self, work: Callable[[], T]) -> T:
        """Return what the work returns; it begins once other work has ended or is at a checkpoint."""
        done: Future[T] = Future()

        def compute() -> None:
            self._queued.discard(done)
            if done.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as exc:
                    done.set_exception(exc)
                else:
                    done.set_result(result)

        self._queued.add(done)
        self._thread.submit(lambda: _switch(greenlet(compute)))
        return await asyncio.wrap_future(done)

    def checkpoint(self, control: Control) -> None:
        """Let other work go first, in the thread and within the work; see `Control.checkpoint`.

        Work that has been asked to wait does so until it may go on; any other only until what is queued has had its
        turn.
        """
        control.checkpoint(self._wait)
        if self._queued:
            turn: Future[None] = Future()
            turn.set_result(None)
            self._wait(turn)

    def close(self) -> None:
        """Let go of the thread; what has not begun is cancelled."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for done in self._queued.copy():
            done.cancel()

    def _wait(self, until: Future[None]) -> None:
        work = getcurrent()
        until.add_done_callback(lambda _: self._thread.submit(_switch, work))
        assert work.parent is not None  # the thread's own stack
        work.parent.switch()


@torch.inference_mode()
def _switch(work: greenlet) -> None:
    """Go on with work in its thread until it ends or waits."""
    work.switch()
