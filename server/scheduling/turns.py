"""A bounded queue for work that is done one piece at a time, in which owners take turns by cost."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from blora.server.errors import QueueFullError
from blora.server.scheduling.admission import QueueState, Room
from blora.server.scheduling.fair_share import FairShare
from blora.server.scheduling.lines import Lines

__all__ = ["Turns", "to_the_end"]

T = TypeVar("T")

# Weight of the newest piece in the running mean of the time per unit of cost.
_SMOOTHING = 0.05


@dataclass(eq=False, slots=True)
class _Ticket:
    owner: Hashable
    cost: int
    number: int
    called: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """Queue of pieces of work that are done one at a time; owners take turns by cost.

    Args:
        room: the limits on what waits.
        what: what waits, in the plural, for error messages.
        unit: unit of the costs, for error messages.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, room: Room, *, what: str, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._room = room
        self._what = what
        self._unit = unit
        self._clock = clock
        self._fair_share = FairShare()
        self._numbers = itertools.count()
        self._waiting: Lines[_Ticket] = Lines()
        self._busy = False
        self._pace: float | None = None  # seconds per unit of cost

    @asynccontextmanager
    async def turn(self, owner: Hashable, cost: int, *, first_step: bool = True) -> AsyncIterator[None]:
        """Wait for a turn, which lasts as long as the context; a cancelled task leaves the queue.

        Args:
            owner: owner of the work.
            cost: cost of the work.
            first_step: whether the work may be refused; a further step of something that had a turn never is.

        Raises:
            QueueFullError: if there is no room to wait.
        """
        ticket = _Ticket(owner, max(cost, 1), next(self._numbers))
        if self._busy and first_step:
            self._check_room(ticket)
        self._waiting.add(ticket)
        self._call_next()
        try:
            await ticket.called.wait()
            started = self._clock()
            try:
                yield
            finally:
                self._measure(ticket.cost, self._clock() - started)
        finally:
            if ticket.called.is_set():
                self._busy = False
            else:
                self._waiting.remove(ticket)
            self._call_next()

    def _call_next(self) -> None:
        if self._busy:
            return
        firsts = self._waiting.firsts()
        if not firsts:
            self._fair_share.reset()
            return
        turns = zip(self._fair_share.turns(firsts), firsts, strict=True)
        turn, ticket = min(turns, key=lambda pair: (pair[0], pair[1].number))
        self._waiting.remove(ticket)
        self._fair_share.served(turn, [ticket])
        self._busy = True
        ticket.called.set()

    def _check_room(self, ticket: _Ticket) -> None:
        held = self._waiting.held()
        ahead = sum(its.cost for its in held.values())
        waiting = QueueState.of(held, ticket.owner, ahead=ahead)
        if self._room.is_full(ticket.cost, waiting) or self._room.exceeds_share(ticket.cost, waiting):
            raise QueueFullError(
                f"{waiting.inputs} {self._what} wait, with {ahead} {self._unit}, {waiting.client_inputs} of them "
                f"yours. The limits are {self._room.inputs} and {self._room.cost} {self._unit}, of which one client "
                "may use four fifths, with one adapter three quarters: try again after the seconds in Retry-After.",
                retry_after_s=max(1, math.ceil(waiting.ahead * (self._pace or 0.0))),
            )

    def _measure(self, cost: int, seconds: float) -> None:
        pace = seconds / cost
        self._pace = pace if self._pace is None else self._pace + _SMOOTHING * (pace - self._pace)


async def to_the_end(executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Run a function in a thread and return its result; a cancelled caller waits for the end too.

    A thread cannot be interrupted. If its caller left at once, the next turn would begin while the thread is occupied.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.gather(future, return_exceptions=True)
        raise
