"""The queue in front of the one worker: which inputs share a forward pass, and which wait.

A forward pass holds inputs of one group, that of the oldest one waiting, so no input and no group
starves. Its size, rows x padded row x draws, stays within `max_batch_tokens`; an input that exceeds it
alone runs alone, and the engine divides its draws among several passes. Inputs whose client
left or whose deadline passed are dropped before they cost anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from blora.server.admission import Admission, Waiting
from blora.server.errors import DeadlineExceededError, DrainingError
from blora.server.turns import Turns

__all__ = ["BatchObserver", "Batcher", "Completed", "Work"]

P = TypeVar("P")
R = TypeVar("R")

DropReason = Literal["cancelled", "expired"]


class BatchObserver(Protocol):
    """Who is told what the batcher does."""

    def forward_done(self, *, rows: int, tokens: int, seconds: float) -> None:
        """A forward pass of `rows` inputs and `tokens` padded tokens x draws succeeded."""

    def waited(self, seconds: float) -> None:
        """An input left the queue for a forward pass."""

    def dropped(self, reason: DropReason) -> None:
        """An input left the queue without one."""

    def queue_changed(self, depth: int) -> None:
        """So many inputs wait now."""


@dataclass(frozen=True, slots=True)
class Work(Generic[P]):
    """One input to compute.

    Attributes:
        payload: what the worker gets.
        lengths: of the parts of its row, in tokens; rows are padded part by part.
        n_draws: those that its row is certain to take.
        group: only equal ones share a forward pass; it fixes n_draws.
        owner: whose it is; owners take turns, whatever each has waiting.
    """

    payload: P
    lengths: tuple[int, ...]
    n_draws: int
    group: Hashable
    owner: Hashable = None

    @property
    def n_tokens(self) -> int:
        """Length of the row."""
        return sum(self.lengths)

    @property
    def cost(self) -> int:
        """Tokens x draws, the unit of every limit here."""
        return self.n_tokens * self.n_draws


@dataclass(frozen=True, slots=True)
class Completed(Generic[R]):
    """A result, and the seconds it waited and took."""

    result: R
    queue_s: float
    compute_s: float


@dataclass(frozen=True, eq=False, slots=True)
class _Item(Generic[P, R]):
    work: Work[P]
    future: asyncio.Future[Completed[R]]
    queued_at: float
    deadline: float

    def wanted(self, now: float) -> bool:
        return not self.future.done() and now < self.deadline


class Batcher(Generic[P, R]):
    """Collects inputs into forward passes of one worker.

    Owners take turns at it; among one owner's inputs the oldest goes first.

    Args:
        run: computes the results of payloads of one group, in order.
        max_batch_tokens: most padded tokens x draws in a forward pass.
        max_queue_tokens: most tokens x draws waiting.
        max_queue_requests: most inputs waiting.
        observer: is told what happens.
    """

    def __init__(
        self,
        run: Callable[[Sequence[P]], Awaitable[Sequence[R]]],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_queue_requests: int,
        observer: BatchObserver,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._admission = Admission(
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            max_queue_requests=max_queue_requests,
        )
        self._observer = observer
        self._queue: dict[_Item[P, R], None] = {}  # in order of arrival
        self._running: list[_Item[P, R]] = []
        self._is_full = False  # whether others had to wait for the next pass
        self._turns = Turns()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._worker: asyncio.Task[None] | None = None
        self.last_forward_failed = False

    def start(self) -> None:
        """Starts the worker on the running event loop."""
        self._worker = asyncio.create_task(self._work(), name="batcher")

    async def submit(self, work: Work[P], *, deadline: float) -> Completed[R]:
        """The result, once a forward pass has computed it.

        Args:
            work: the input.
            deadline: event-loop time after which nobody wants the result.

        Raises:
            TooLargeError: if one of its draws exceeds a forward pass, or all of them the queue.
            QueueFullError: if there is no room for it to wait, or it would wait too long.
            DrainingError: if the batcher takes no more.
            DeadlineExceededError: if the deadline passed first.
            Exception: whatever the worker raised on this input alone.
        """
        loop = asyncio.get_running_loop()
        self._admit(work, deadline - loop.time())
        item: _Item[P, R] = _Item(work, loop.create_future(), loop.time(), deadline)
        self._queue[item] = None
        self._wake.set()
        self._changed()
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await item.future
        except TimeoutError as exc:
            if not limit.expired():  # the worker's own
                raise
            self._drop(item, "expired")
            raise DeadlineExceededError(
                "got no result before the deadline, expected one: try again later, with fewer "
                "draws, or raise the server's timeout_s"
            ) from exc
        except asyncio.CancelledError:
            self._drop(item, "cancelled")
            raise

    async def drain(self, timeout_s: float) -> None:
        """Takes no more, finishes what waits, and stops the worker.

        Args:
            timeout_s: after so many seconds what is left gets DrainingError.
        """
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            for item in [*self._running, *self._queue]:
                if not item.future.done():
                    item.future.set_exception(self._draining_error())
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None

    def _admit(self, work: Work[P], seconds_left: float) -> None:
        if self._draining:
            raise self._draining_error()
        self._admission.check_size(work.n_tokens, work.n_draws)
        waiting = [item.work for item in self._queue]
        own = [other for other in waiting if other.owner == work.owner]
        *turns, turn = self._turns.of([*waiting, work])
        found = Waiting(
            inputs=len(waiting),
            cost=sum(other.cost for other in waiting),
            own_inputs=len(own),
            own_cost=sum(other.cost for other in own),
            ahead=sum(other.cost for other, its in zip(waiting, turns, strict=True) if its <= turn)
            + sum(item.work.cost for item in self._running),
        )
        self._admission.check_room(work.cost, found, seconds_left)

    @staticmethod
    def _draining_error() -> DrainingError:
        return DrainingError("got a request while shutting down, expected none: ask another replica")

    def _drop(self, item: _Item[P, R], reason: DropReason) -> None:
        if item in self._queue:
            del self._queue[item]
            self._observer.dropped(reason)
            self._changed()

    def _changed(self) -> None:
        self._observer.queue_changed(len(self._queue))
        if self._queue or self._running:
            self._idle.clear()
        else:
            self._idle.set()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._running = self._take()
            self._is_full = bool(self._queue)
            if not self._running:
                self._wake.clear()
                continue
            self._changed()
            try:
                await self._compute(self._running)
            finally:
                self._running = []
                self._changed()

    def _take(self) -> list[_Item[P, R]]:
        """The input whose turn it is, of those still wanted, and those of its group that fit beside it."""
        now = asyncio.get_running_loop().time()
        wanted = [item for item in self._queue if item.wanted(now)]
        if not wanted:
            self._turns.forget()
            return []
        turns = dict(zip(wanted, self._turns.of(item.work for item in wanted), strict=True))
        first, *others = sorted(wanted, key=lambda item: turns[item])
        peers = [item for item in others if item.work.group == first.work.group]
        # Rows of like length waste the least padding; the sort is stable, so ties go by turn.
        peers.sort(key=lambda item: abs(item.work.n_tokens - first.work.n_tokens))
        batch = [first]
        for item in peers:
            if self._padded_tokens([*batch, item]) <= self._max_batch_tokens:
                batch.append(item)
        for item in batch:
            del self._queue[item]
        self._turns.went(turns[first], [item.work for item in batch])
        return batch

    @staticmethod
    def _padded_tokens(batch: Sequence[_Item[P, R]]) -> int:
        parts: Iterable[tuple[int, ...]] = zip(*(item.work.lengths for item in batch), strict=True)
        return len(batch) * sum(map(max, parts)) * batch[0].work.n_draws

    async def _compute(self, batch: Sequence[_Item[P, R]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            results = await self._run([item.work.payload for item in batch])
            finished = list(zip(batch, results, strict=True))
        except Exception as exc:
            self.last_forward_failed = True
            await self._recover(batch, exc)
            return
        seconds = loop.time() - started
        self.last_forward_failed = False
        self._admission.pace.measure(sum(item.work.cost for item in batch), seconds, full=self._is_full)
        self._observer.forward_done(rows=len(batch), tokens=self._padded_tokens(batch), seconds=seconds)
        for item, result in finished:
            waited = started - item.queued_at
            self._observer.waited(waited)
            if not item.future.done():
                item.future.set_result(Completed(result, waited, seconds))

    async def _recover(self, batch: Sequence[_Item[P, R]], exc: Exception) -> None:
        """Computes the inputs of a failed forward pass one by one, so that one fails alone."""
        if len(batch) == 1:
            if not batch[0].future.done():
                batch[0].future.set_exception(exc)
            return
        for item in batch:
            if item.wanted(asyncio.get_running_loop().time()):
                await self._compute([item])
