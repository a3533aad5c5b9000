"""What the event loop and a run in another thread say to each other: go on, wait, or stop."""

import time
from collections.abc import Callable
from concurrent.futures import Future

__all__ = ["AbandonedError", "Control"]


class AbandonedError(Exception):
    """Nobody waits for any result of a run: every client has left, or every deadline has passed."""


def _always(payload: object) -> bool:
    return True


def _nothing(*args: object) -> None:
    pass


class Control:
    """One run's: its thread asks at every checkpoint, the event loop answers.

    Args:
        wants: whether somebody waits for the result of a payload, or of any (None); called in the run's thread.
        parked: called in the run's thread when it begins to wait.
        finished: called in the run's thread with a payload and its result, when that is there before others are.
        dropped: called in the run's thread with a payload whose result nobody wants, and which is computed no further.
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
        """When the run last showed that it goes on, in seconds of the event loop's clock."""
        self._parked = parked
        self._turn: Future[None] = Future()  # done as long as the run may go on
        self._turn.set_result(None)

    def look(self) -> None:
        """Give a sign of life; for work that waits without a thread, and so may be stopped but not made to wait.

        Raises:
            AbandonedError: if nobody wants any of the results.
        """
        self.last_sign = time.monotonic()
        if not self.wants(None):
            raise AbandonedError("nobody waits for what is being computed")

    def checkpoint(self, wait: Callable[[Future[None]], object] = Future.result) -> None:
        """Wait here while others go first, in the run's thread.

        Args:
            wait: returns once a future is done; by default the thread sleeps meanwhile.

        Raises:
            AbandonedError: if nobody wants any of the results.
        """
        self.look()
        turn = self._turn  # the one that is announced: by the time of the wait there may be another
        if not turn.done():
            self._parked()
            wait(turn)
            self.look()

    @property
    def is_to_park(self) -> bool:
        """Return whether the run is to wait at its next checkpoint."""
        return not self._turn.done()

    def park(self) -> None:
        """Have the run wait at its next checkpoint."""
        if self._turn.done():
            self._turn = Future()

    def go_on(self) -> None:
        """Let the run go on."""
        self.last_sign = time.monotonic()
        if not self._turn.done():
            self._turn.set_result(None)
