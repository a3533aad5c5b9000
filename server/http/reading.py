"""Reading of bodies: short ones on the event loop, long ones in one thread, where clients take turns."""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from blora.server.errors import DeadlineExceededError
from blora.server.http.authentication import owner
from blora.server.http.disconnect import unless_disconnected
from blora.server.prediction.service import Service
from blora.server.scheduling.admission import Room
from blora.server.scheduling.turns import Turns, to_the_end

__all__ = ["Reader", "Reading"]

T = TypeVar("T")

# Longest body, in bytes, that the event loop reads itself: waking a thread would take longer.
_SHORT = 16384
# Limits on the bodies that wait for the thread: their number, and their bytes in bodies of the largest size.
_MOST_WAITING = 1024
_MOST_WAITING_LARGEST = 64


class Reader:
    """A thread that reads long bodies one at a time; clients take turns by bytes.

    Args:
        max_body_bytes: the largest body, in bytes.
    """

    def __init__(self, max_body_bytes: int) -> None:
        room = Room(_MOST_WAITING, _MOST_WAITING_LARGEST * max_body_bytes)
        self._turns = Turns(room, what="bodies to be read", unit="bytes")
        self._thread = ThreadPoolExecutor(1, "read")

    async def run(self, work: Callable[[], T], client: Hashable, n_bytes: int, *, first_step: bool) -> T:
        """Run a function in the thread when it is the client's turn, and return its result.

        Args:
            work: the function.
            client: owner of the body.
            n_bytes: length of the body.
            first_step: whether the work may be refused; a further step with the same body never is.

        Raises:
            QueueFullError: if there is no room to wait.
        """
        async with self._turns.turn(client, n_bytes, first_step=first_step):
            return await to_the_end(self._thread, work)

    def close(self) -> None:
        """Shut the thread down."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Reading:
    """Length and deadline of a request, for the steps that read its body and write its answer.

    Attributes:
        n_bytes: length of the body, or of an answer that is longer than the body tells.
        deadline: time of the event loop by which the request is answered, the server's timeout after its body arrived;
            infinity for an answer that is written later too.
    """

    n_bytes: int
    deadline: float

    async def run(self, request: Request, work: Callable[[], T], *, first_step: bool = False) -> T:
        """Run a step, on the event loop for a short body and in the reader's thread for a long one.

        The time of a request that misses its deadline here is recorded, as the predictor records that of an input.

        Args:
            request: the request, whose state has this object.
            work: the step.
            first_step: whether the step is the body's first one, which may be refused.

        Raises:
            DeadlineExceededError: if the deadline passes first.
            DisconnectedError: if the client disconnects first.
            QueueFullError: if too many bodies wait.
        """
        if self.n_bytes <= _SHORT:
            return work()
        reader: Reader = request.app.state.reader
        running = reader.run(work, owner(request.scope), self.n_bytes, first_step=first_step)
        try:
            async with asyncio.timeout_at(self.deadline):
                return await unless_disconnected(request, running)
        except TimeoutError as exc:
            service: Service = request.app.state.service
            late_s = asyncio.get_running_loop().time() - self.deadline
            service.metrics.finished(service.settings.timeout_s + late_s)  # no question of it reaches the predictor
            raise DeadlineExceededError("The request waited until its deadline to be read: try again later.") from exc
