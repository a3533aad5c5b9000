"""Messages between the batcher and a run, in another thread or on the event loop: go on, wait, or stop."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future

__all__ = ["AbandonedError", "Control", "UnavailableError"]


class AbandonedError(Exception):
    """No result of the run is wanted any more: every client has left, or every deadline has passed."""


class UnavailableError(Exception):
    """What computes the run cannot be reached at the moment: no input of the run is to blame."""


def _always(payload: object) -> bool:
    return True


def _nothing(*args: object) -> None:
    pass


class Control:
    """Control of one run: the run's thread asks at every checkpoint, and the event loop answers.

    Args:
        wants: returns whether the result of a payload, or of any payload (None), is wanted; called in the run's thread.
        parked: called in the run's thread when the run begins to wait.
        finished: called in the run's thread with a payload and its result, if that is ready before others.
        dropped: called in the run's thread with a payload that is computed no further because nobody wants its result.
    """

    def __init__(
        self,
        wants: Callable[[object], bool] = _always,
        parked: Callable[[], None] = _nothing,
        finished: Callable[[object, object], None] = _nothing,
        dropped: Callable[[object], None] = _nothing,
    ) -> None:
        self.wants = wants
        self.finished = finished
        self.dropped = dropped
        self.last_sign = time.monotonic()
        """Time of the run's last sign of progress, in seconds of the event loop's clock."""
        self._parked = parked
        self._turn: Future[None] = Future()  # done while the run may go on
        self._turn.set_result(None)

    def look(self, payload: object = None) -> None:
        """Record progress, and stop if the result of a payload, or of every payload (None), is not wanted any more.

        Raises:
            AbandonedError: if it is not.
        """
        self.last_sign = time.monotonic()
        if not self.wants(payload):
            raise AbandonedError("the result is not wanted any more")

    def checkpoint(self, wait: Callable[[Future[None]], object] = Future.result) -> None:
        """Record progress, and wait while the run is parked; called in the run's thread.

        Args:
            wait: returns once a future is done; by default the thread sleeps until then.

        Raises:
            AbandonedError: if no result of the run is wanted any more.
        """
        self.look()
        turn = self._turn  # the announced one: by the time of the wait there may be another
        if not turn.done():
            self._parked()
            wait(turn)
            self.look()

    async def give_way(self) -> None:
        """Wait while the run is parked; for runs without a thread, called on the event loop.

        Raises:
            AbandonedError: if no result of the run is wanted any more.
        """
        turn = self._turn  # as in `checkpoint`
        if not turn.done():
            self._parked()
            await _done(turn)
            self.look()

    async def turn(self) -> None:
        """Wait until the run may go on; unlike `give_way`, announce nothing."""
        while not self._turn.done():
            await _done(self._turn)

    @property
    def is_to_park(self) -> bool:
        """Return whether the run is to wait at its next checkpoint."""
        return not self._turn.done()

    def park(self) -> None:
        """Make the run wait at its next checkpoint."""
        if self._turn.done():
            self._turn = Future()

    def go_on(self) -> None:
        """Let the run go on."""
        self.last_sign = time.monotonic()
        if not self._turn.done():
            self._turn.set_result(None)


async def _done(turn: Future[None]) -> None:
    await asyncio.shield(asyncio.wrap_future(turn))  # whoever stops waiting would cancel it for all
