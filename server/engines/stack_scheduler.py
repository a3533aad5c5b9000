"""Cooperative scheduling of runs in one thread: at its checkpoints a run can wait while the thread computes another.

Each computing thread has its own team of OpenMP threads, whose members spin while they wait, unless there are more of
them than cores. A second computing thread, and so a second team, makes every pass take 1.7 times as long on two cores.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet

from blora.server.scheduling.control import Control

__all__ = ["StackScheduler"]

T = TypeVar("T")


class StackScheduler:
    """Scheduler that runs tasks in one thread, each on its own stack (a greenlet).

    All tasks run under `torch.inference_mode`: the mode belongs to the thread, so that a task which left the mode while
    another one waited inside it would change the mode of both.

    Args:
        thread: an executor of one thread.
    """

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._queued: set[Future[Any]] = set()  # futures of tasks that have not begun

    async def run(self, work: Callable[[], T]) -> T:
        """Run a task, which begins once the others have ended or wait at a checkpoint, and return its result."""
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
        """Let other tasks run first; called by a task in the thread. See `Control.checkpoint`.

        A task that was asked to wait does so until it may go on; any other task waits only until the queued tasks have
        had their turn.
        """
        control.checkpoint(self._wait)
        if self._queued:
            turn: Future[None] = Future()
            turn.set_result(None)
            self._wait(turn)

    def close(self) -> None:
        """Shut the thread down and cancel the tasks that have not begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for done in self._queued.copy():
            done.cancel()

    def _wait(self, until: Future[None]) -> None:
        work = getcurrent()
        until.add_done_callback(lambda _: self._thread.submit(_switch, work))
        assert work.parent is not None  # the thread's main stack
        work.parent.switch()


@torch.inference_mode()
def _switch(work: greenlet) -> None:
    """Continue a task in its thread until it ends or waits."""
    work.switch()
