"""The queue in front of the one worker: which inputs share a forward pass, and which wait.

A run of the engine holds inputs of one group, that of the oldest one waiting, so no input and no group
starves. Its size, rows x padded row x draws, stays within `max_batch_tokens`; an input that exceeds it
alone runs alone, and the engine divides its draws among several passes. Inputs whose client
left or whose deadline passed are dropped before they cost anything, or as soon as the engine looks up.

A run that takes long gives way: it waits at a checkpoint while inputs go first that take less time than it has had, and
then has the worker for a fifth of the time. So no input, however much work it is, keeps others waiting for all of it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar, cast

from blora.server.errors import DeadlineExceededError, DrainingError, QueueFullError
from blora.server.scheduling.admission import Admission, Waiting
from blora.server.scheduling.control import AbandonedError, Control
from blora.server.scheduling.fair_share import FairShare
from blora.server.scheduling.pace import Pace
from blora.server.scheduling.runs import OWN_SHARE, Completed, DropReason, Item, Run, Work, padded_tokens

__all__ = ["BatchObserver", "Batcher", "Completed", "Work"]

P = TypeVar("P")
R = TypeVar("R")

# Most runs that have begun, of which one goes on; the last place is for one that takes no more than a forward pass.
_MOST_RUNS = 4
# What a run that gave way has of the worker's next seconds, for each of the one that went before it.
_OWED = 0.25
# How often to look whether the run that goes on should give way, in seconds.
_LOOK_S = 0.05
# How long a refused input counts as demand, in seconds.
_REFUSED_S = 30.0


class BatchObserver(Protocol):
    """Who is told what the batcher does."""

    def forward_done(self, *, rows: int, tokens: int, seconds: float) -> None:
        """A run of `rows` inputs and `tokens` padded tokens x draws succeeded."""

    def waited(self, seconds: float) -> None:
        """An input was computed, and waited so long for that."""

    def dropped(self, reason: DropReason) -> None:
        """An input left without having been computed to the end."""

    def queue_changed(self, depth: int) -> None:
        """So many inputs wait now."""


class Batcher(Generic[P, R]):
    """Collects inputs into runs of one worker.

    Owners take turns at it; among one owner's inputs the oldest goes first.

    Args:
        run: computes the results of payloads of one group, in order, and asks the control whether to go on.
        max_batch_tokens: most padded tokens x draws in a forward pass.
        max_queue_tokens: most tokens x draws waiting.
        max_queue_requests: most inputs waiting.
        max_input_passes: most forward passes that one input may fill.
        observer: is told what happens.
    """

    def __init__(
        self,
        run: Callable[[Sequence[P], Control], Awaitable[Sequence[R]]],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_queue_requests: int,
        max_input_passes: int,
        observer: BatchObserver,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._admission = Admission(
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            max_queue_requests=max_queue_requests,
            max_input_passes=max_input_passes,
        )
        self._observer = observer
        self._queue: dict[Item[P, R], None] = {}  # in order of arrival
        self._active: Run[P, R] | None = None
        self._parked: list[Run[P, R]] = []
        self._owed_s = 0.0  # what the active run may use before it gives way
        self._refused: deque[tuple[float, float]] = deque()  # when, and seconds of work
        self._turns = FairShare()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._worker: asyncio.Task[None] | None = None
        self.last_forward_failed = False

    @property
    def pace(self) -> Pace:
        """How long work takes."""
        return self._admission.pace

    @property
    def silent_s(self) -> float:
        """For how long the active run has shown no sign that it goes on; 0 where there is none."""
        return asyncio.get_running_loop().time() - self._active.control.last_sign if self._active is not None else 0.0

    @property
    def backlog_s(self) -> float:
        """Seconds of work: what waits, what has begun, and what was refused within the last half minute."""
        now = asyncio.get_running_loop().time()
        while self._refused and self._refused[0][0] < now - _REFUSED_S:
            self._refused.popleft()
        waiting = self.pace.seconds(sum(item.work.cost for item in self._queue))
        # What has taken longer than expected is expected to take as much longer again.
        begun = sum(abs(self.pace.seconds(run.cost) - run.had_s) for run in self._begun())
        return waiting + begun + sum(seconds for _, seconds in self._refused)

    def start(self) -> None:
        """Starts the worker on the running event loop."""
        self._worker = asyncio.create_task(self._work(), name="batcher")

    async def submit(self, work: Work[P], *, deadline: float) -> Completed[R]:
        """The result, once a run has computed it.

        Args:
            work: the input.
            deadline: event-loop time after which nobody wants the result.

        Raises:
            TooLargeError: if one of its draws exceeds a forward pass, all of them the queue or what one input may take,
                or if it could not be done by the deadline even if nothing else were to be done.
            QueueFullError: if there is no room for it to wait, or it would wait too long.
            DrainingError: if the batcher takes no more.
            DeadlineExceededError: if the deadline passed first.
            Exception: whatever the worker raised on this input alone.
        """
        loop = asyncio.get_running_loop()
        self._admit(work, deadline - loop.time())
        item: Item[P, R] = Item(work, loop.create_future(), loop.time(), deadline)
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
                "There was no answer before the deadline: try again later, with fewer draws, or raise the server's "
                "--timeout-s."
            ) from exc
        except asyncio.CancelledError:
            self._drop(item, "cancelled")
            raise

    def take_no_more(self) -> None:
        """Refuse every further input."""
        self._draining = True

    async def drain(self, timeout_s: float) -> None:
        """Take no more, finish what waits, and stop the worker.

        Args:
            timeout_s: after so many seconds what is left gets DrainingError.
        """
        self.take_no_more()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            begun = self._begun()
            for item in [*(item for run in begun for item in run.items), *self._queue]:
                if not item.future.done():
                    item.future.set_exception(self._draining_error())
            for run in begun:
                run.control.go_on()  # its thread ends, for nobody waits any more
        tasks = [self._worker, *(run.task for run in self._begun())]
        self._worker = None
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)

    def _begun(self) -> list[Run[P, R]]:
        return [*self._parked, *([self._active] if self._active is not None else [])]

    def _admit(self, work: Work[P], seconds_left: float) -> None:
        if self._draining:
            raise self._draining_error()
        self._admission.check_size(work, seconds_left)
        waiting = [item.work for item in self._queue]
        own = [other for other in waiting if other.owner == work.owner]
        *turns, turn = self._turns.of([*waiting, work])
        ahead = [other.cost for other, its in zip(waiting, turns, strict=True) if its <= turn]
        found = Waiting(
            inputs=len(waiting),
            cost=sum(other.cost for other in waiting),
            own_inputs=len(own),
            own_cost=sum(other.cost for other in own),
            ahead=self._delay([*ahead, *(run.cost for run in self._begun())], work),
        )
        try:
            self._admission.check_room(work.cost, found, seconds_left)
        except QueueFullError:
            self._refused.append((asyncio.get_running_loop().time(), self.pace.seconds(work.cost)))
            raise

    def _delay(self, costs: Sequence[int], work: Work[P]) -> int:
        """What of the work ahead is done before a newcomer: of what takes long no more than until it gives way."""
        most = max(self._max_batch_tokens, round(work.cost / OWN_SHARE))
        return sum(cost for cost in costs if cost <= most) + (most if any(cost > most for cost in costs) else 0)

    @staticmethod
    def _draining_error() -> DrainingError:
        return DrainingError("The server is shutting down: ask another replica.")

    def _drop(self, item: Item[P, R], reason: DropReason) -> None:
        item.left = reason
        if item in self._queue:
            del self._queue[item]
            self._observer.dropped(reason)
            self._changed()
        self._wake.set()

    def _changed(self) -> None:
        self._observer.queue_changed(len(self._queue))
        if self._queue or self._begun():
            self._idle.clear()
        else:
            self._idle.set()

    async def _work(self) -> None:
        while True:
            others_wait = self._active is not None and (self._queue or self._parked)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if others_wait else None):
                    await self._wake.wait()
            self._wake.clear()
            if self._active is None:
                self._active = self._next()
                self._changed()
            elif not self._active.control.is_to_park and self._has_to_give_way(self._active):
                self._active.control.park()

    def _next(self) -> Run[P, R] | None:
        """What has the worker now: a new run or one that gave way; None where nothing is left to do."""
        first = self._first(self._parked)
        gone = [run for run in self._parked if not run.is_wanted]
        if gone or (self._parked and (self._owed_s > 0 or first is None)):
            run = gone[0] if gone else min(self._parked, key=lambda run: run.had_s)
            self._parked.remove(run)
            run.get()
            return run
        if first is None:
            self._turns.forget()
            return None
        return self._begin(self._take(first))

    def _has_to_give_way(self, run: Run[P, R]) -> bool:
        if run.stint_s < self._owed_s:
            return False
        if self._first([*self._parked, run]) is not None:
            return True
        return any(run.is_ahead_of(other) or not other.is_wanted for other in self._parked)

    def _first(self, begun: Sequence[Run[P, R]]) -> Item[P, R] | None:
        """The input whose turn it is, of those still wanted to which everything that has begun gives way."""
        now = asyncio.get_running_loop().time()
        wanted = [item for item in self._queue if item.wanted(now)]
        turns = dict(zip(wanted, self._turns.of(item.work for item in wanted), strict=True))
        for item in sorted(wanted, key=lambda item: turns[item]):
            takes_long = item.work.cost > self._max_batch_tokens
            if len(begun) < _MOST_RUNS - takes_long and all(run.gives_way_to(item.work, self.pace) for run in begun):
                return item
        return None

    def _take(self, first: Item[P, R]) -> list[Item[P, R]]:
        """An input, and those of its group that fit beside it."""
        now = asyncio.get_running_loop().time()
        wanted = [item for item in self._queue if item.wanted(now)]
        turns = dict(zip(wanted, self._turns.of(item.work for item in wanted), strict=True))
        peers = [
            item
            for item in sorted(wanted, key=lambda item: turns[item])
            if item is not first
            and item.work.group == first.work.group
            and all(run.gives_way_to(item.work, self.pace) for run in self._parked)
        ]
        # Rows of like length waste the least padding; the sort is stable, so ties go by turn.
        peers.sort(key=lambda item: abs(item.work.n_tokens - first.work.n_tokens))
        batch = [first]
        for item in peers:
            if padded_tokens([*batch, item]) <= self._max_batch_tokens:
                batch.append(item)
        for item in batch:
            del self._queue[item]
        self._turns.went(turns[first], [item.work for item in batch])
        return batch

    def _begin(self, batch: list[Item[P, R]]) -> Run[P, R]:
        loop = asyncio.get_running_loop()

        def wants(payload: object) -> bool:
            now = loop.time()
            return any(item.wanted(now) for item in run.items if payload is None or item.work.payload is payload)

        def parked() -> None:
            loop.call_soon_threadsafe(self._gave_way, run)

        def finished(payload: object, result: object) -> None:
            loop.call_soon_threadsafe(self._answer, run, payload, result)

        def dropped(payload: object) -> None:
            loop.call_soon_threadsafe(self._count_dropped, run, payload)

        control = Control(wants, parked, finished, dropped)
        run: Run[P, R] = Run(batch, loop.time, control, is_full=bool(self._queue) and not self._parked)
        run.get()
        run.task = asyncio.create_task(self._compute(run), name="run")
        return run

    def _gave_way(self, run: Run[P, R]) -> None:
        self._worker_is_free(run)
        self._parked.append(run)

    def _worker_is_free(self, run: Run[P, R]) -> None:
        is_new = not run.used_s
        self._owed_s = _OWED * run.stint_s if is_new and self._parked else 0.0
        run.give()
        if self._active is run:
            self._active = None
        self._wake.set()

    async def _compute(self, run: Run[P, R]) -> None:
        items = run.items
        try:
            if await self._attempt(run) or len(items) == 1:
                return
            # One by one, so that one fails alone.
            for item in items:
                if item.wanted(run.clock()):
                    run.items = [item]
                    await self._attempt(run)
        finally:
            if run in self._parked:  # ended while it waited: only by being cancelled
                self._parked.remove(run)
            self._worker_is_free(run)
            self._changed()

    async def _attempt(self, run: Run[P, R]) -> bool:
        """Computes the items of a run; whether that went well. What makes one item fail alone is its result."""
        began_s = run.had_s
        try:
            results = await self._run([item.work.payload for item in run.items], run.control)
            finished = list(zip(run.items, results, strict=True))
        except AbandonedError:
            self._count_dropped(run, None)
            return True
        except Exception as exc:
            self.last_forward_failed = True
            if len(run.items) == 1 and not run.items[0].future.done():
                run.items[0].future.set_exception(exc)
            return False
        seconds = run.had_s - began_s
        self.last_forward_failed = False
        self.pace.measure(run.cost, seconds, full=run.is_full)
        self._observer.forward_done(rows=len(run.items), tokens=padded_tokens(run.items), seconds=seconds)
        for item, result in finished:
            self._answer(run, item.work.payload, result)
        return True

    def _count_dropped(self, run: Run[P, R], payload: object) -> None:
        """Of a payload or of all (None), those that are not computed any further and have no result."""
        for item in run.items:
            if (payload is None or payload is item.work.payload) and (
                item.future.cancelled() or not item.future.done()
            ):
                self._observer.dropped(item.left)

    def _answer(self, run: Run[P, R], payload: object, result: object) -> None:
        """Give an input its result, of which what it did not have the worker for was waiting."""
        for item in run.items:
            if item.work.payload is payload and not item.future.done():
                in_all = run.clock() - item.queued_at
                compute_s = min(run.had_s, in_all)
                self._observer.waited(in_all - compute_s)
                item.future.set_result(Completed(cast(R, result), in_all - compute_s, compute_s))
