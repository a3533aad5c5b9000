"""The queue in front of the one worker, and the choice of inputs that share a forward pass.

A run of the engine holds inputs of one group, the group of the input whose turn it is, so that no input and no group
starves. The size of a run, rows x padded row x draws, stays within `max_batch_tokens`; an input that exceeds the limit
runs alone, and the engine divides its draws among several passes. Inputs whose client has left or whose deadline has
passed are dropped before they run, or at the engine's next checkpoint.

A long run gives way: it is parked at a checkpoint while inputs run that need less time than the run has already had,
and then gets a fifth of the worker's time. So even the largest input does not block others until it ends.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar, cast

from blora.server.errors import DeadlineExceededError, DrainingError, QueueFullError
from blora.server.scheduling.admission import Admission, QueueState, held_by_owner
from blora.server.scheduling.control import AbandonedError, Control, UnavailableError
from blora.server.scheduling.demand import RefusedWork
from blora.server.scheduling.fair_share import FairShare
from blora.server.scheduling.observer import BatchObserver
from blora.server.scheduling.pace import Pace
from blora.server.scheduling.runs import OWN_SHARE, Completed, DropReason, Item, PassSize, Run, Work, shares

__all__ = ["Batcher", "Completed", "Work"]

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")

# Most runs in progress, the active one and the parked ones. The last place is for runs of a single forward pass.
_MAX_RUNS = 4
# Seconds that a resumed run keeps the worker, for each second that the run before it had.
_GUARANTEED_SHARE = 0.25
# Seconds between checks whether the active run should be parked.
_POLL_S = 0.05


class Batcher(Generic[P, R]):
    """A queue that groups inputs into runs of one worker.

    Owners take turns; the inputs of one owner run in order of arrival.

    Args:
        run: computes the results of payloads of one group, in order; asks the control at checkpoints whether to go on.
        max_batch_tokens: most padded tokens x draws in a forward pass.
        max_queue_tokens: most waiting tokens x draws.
        max_queue_requests: most waiting inputs.
        max_input_passes: most forward passes for one input.
        timeout_s: seconds within which an input has to be answered on an idle server.
        observer: receives reports of runs and of the queue.
    """

    def __init__(
        self,
        run: Callable[[Sequence[P], Control], Awaitable[Sequence[R]]],
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_queue_requests: int,
        max_input_passes: int,
        timeout_s: float,
        observer: BatchObserver,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._admission = Admission(
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            max_queue_requests=max_queue_requests,
            max_input_passes=max_input_passes,
            timeout_s=timeout_s,
        )
        self._observer = observer
        self._queue: dict[Item[P, R], None] = {}  # in order of arrival
        self._active: Run[P, R] | None = None
        self._parked: list[Run[P, R]] = []
        self._guaranteed_s = 0.0  # worker time of the active run before it may be parked
        self._refused = RefusedWork()
        self._fair_share = FairShare()
        self._wake = asyncio.Event()
        self._draining = False
        self._worker: asyncio.Task[None] | None = None
        self.last_forward_failed = self._is_away = False

    @property
    def pace(self) -> Pace:
        """Estimate of how long work takes."""
        return self._admission.pace

    @property
    def silent_s(self) -> float:
        """Seconds since the active run last showed progress; 0 without an active run, endless without a worker."""
        if self._worker is not None and self._worker.done():
            return math.inf
        return asyncio.get_running_loop().time() - self._active.control.last_sign if self._active is not None else 0.0

    @property
    def backlog_s(self) -> float:
        """Seconds of work that waits, has begun, or was refused within the last 30 s."""
        waiting = self.pace.seconds_now(sum(share.cost for share in shares(item.work for item in self._queue)))
        # A run that is overdue by some time is expected to take that time again.
        begun = sum(abs(self.pace.seconds_now(run.cost) - run.worker_s) for run in self._begun())
        return waiting + begun + self._refused.seconds(asyncio.get_running_loop().time())

    def start(self) -> None:
        """Start the worker on the running event loop."""
        self._worker = asyncio.create_task(self._work(), name="batcher")

    async def submit(self, work: Work[P], *, deadline: float) -> Completed[R]:
        """Queue an input and return its result.

        Args:
            work: the input.
            deadline: event-loop time after which the result is useless.

        Raises:
            TooLargeError: if one draw exceeds a forward pass, if all draws exceed the queue or the limit of one
                input, or if the input takes longer than the timeout even on an idle server.
            QueueFullError: if the queue has no room, or the input would wait too long.
            DrainingError: if the batcher admits no more inputs.
            DeadlineExceededError: if the deadline passes first.
            Exception: the exception that the worker raised for this input alone.
        """
        loop = asyncio.get_running_loop()
        self._admit(work, deadline, loop.time())
        item: Item[P, R] = Item(work, loop.create_future(), loop.time(), deadline)
        self._queue[item] = None
        self._wake.set()
        self._changed()
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await item.future
        except TimeoutError as exc:
            if not limit.expired():  # raised by the worker
                raise
            self._drop(item, "expired")
            raise DeadlineExceededError(
                "There was no answer before the deadline: try again later, with fewer draws, or raise the server's "
                "--timeout-s."
            ) from exc
        except asyncio.CancelledError:
            self._drop(item, "cancelled")
            raise

    def stop_admitting(self) -> None:
        """Refuse every further input."""
        self._draining = True

    async def stop(self) -> None:
        """Stop the worker at once; every input without a result fails with DrainingError."""
        self.stop_admitting()
        self._fail(self._queue, self._draining_error())
        for run in self._begun():
            self._fail(run.items, self._draining_error())
            run.control.go_on()  # lets its thread reach a checkpoint, where it is abandoned
        tasks = [self._worker, *(run.task for run in self._begun())]
        self._worker = None
        for task in filter(None, tasks):
            task.cancel()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)

    @staticmethod
    def _fail(items: Iterable[Item[P, R]], error: Exception) -> None:
        for item in items:
            if not item.future.done():
                item.future.set_exception(error)

    def _begun(self) -> list[Run[P, R]]:
        return [*self._parked, *([self._active] if self._active is not None else [])]

    def check_admitting(self) -> None:
        """Raise a DrainingError if no more inputs are admitted."""
        if self._draining:
            raise self._draining_error()

    def _admit(self, work: Work[P], deadline: float, now: float) -> None:
        self.check_admitting()
        self._admission.check_size(work, now)
        *waiting, new = shares([*(item.work for item in self._queue), work])
        to_run = shares([*(item.work for item in self._in_time(now)), work])
        *turns, turn = self._fair_share.turns(to_run)
        ahead = [share.cost for share, its in zip(to_run[:-1], turns, strict=True) if its <= turn]
        delay = self._delay([*ahead, *(run.cost for run in self._begun())], new.cost)
        found = QueueState.of(held_by_owner(waiting), new.owner, ahead=delay)
        try:
            self._admission.check_room(new.cost, found, deadline - now)
        except QueueFullError:
            self._refused.add(now, self.pace.seconds_now(new.cost))
            raise

    def _delay(self, costs: Sequence[int], cost: int) -> int:
        """Return the cost of the work done before a new input; long runs count only until they give way."""
        most = max(self._max_batch_tokens, round(cost / OWN_SHARE))
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

    def _changed(self) -> None:
        self._observer.queue_changed(len(self._queue))

    async def _work(self) -> None:
        while True:
            others_wait = self._queue or self._parked
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S if others_wait else None):
                    await self._wake.wait()
            self._wake.clear()
            if self._active is None:
                self._active = self._next()
                self._changed()
            elif not self._active.control.is_to_park and self._should_park(self._active):
                self._active.control.park()

    def _next(self) -> Run[P, R] | None:
        """Return the next run, a new or a parked one; None if there is no work."""
        turns = self._turns(asyncio.get_running_loop().time())
        first = self._first(turns, self._parked)
        gone = [run for run in self._parked if not run.is_wanted]
        if gone or (self._parked and (self._guaranteed_s > 0 or first is None)):
            run = gone[0] if gone else min(self._parked, key=lambda run: run.worker_s)
            self._parked.remove(run)
            run.resume()
            return run
        if first is None:
            self._fair_share.reset()
            return None
        return self._begin(self._take(first, turns))

    def _should_park(self, run: Run[P, R]) -> bool:
        if run.current_turn_s < self._guaranteed_s:
            return False
        if self._first(self._turns(asyncio.get_running_loop().time()), [*self._parked, run]) is not None:
            return True
        return any(run.is_ahead_of(other) or not other.is_wanted for other in self._parked)

    def _turns(self, now: float) -> dict[Item[P, R], float]:
        """Return the turns of the inputs that can be answered in time, or of all wanted ones if none can, in order.

        Of a queue that is too long, each input would otherwise run right before its deadline, in vain.
        """
        items = self._in_time(now) or [item for item in self._queue if item.wanted(now)]
        turns = zip(items, self._fair_share.turns(shares(item.work for item in items)), strict=True)
        return dict(sorted(turns, key=lambda pair: pair[1]))

    def _in_time(self, now: float) -> list[Item[P, R]]:
        """Return the wanted inputs that can be answered in time."""
        wanted = [item for item in self._queue if item.wanted(now)]
        most = min(self._max_batch_tokens, sum(share.cost for share in shares(item.work for item in wanted)))
        ends = {cost: now + self.pace.seconds_now(max(most, cost)) for cost in {item.work.cost for item in wanted}}
        return [item for item in wanted if ends[item.work.cost] < item.deadline]

    def _first(self, turns: Iterable[Item[P, R]], begun: Sequence[Run[P, R]]) -> Item[P, R] | None:
        """Return the input whose turn is next and to which all given runs give way, if there is one."""
        for item in turns:
            takes_long = item.work.cost > self._max_batch_tokens
            if len(begun) < _MAX_RUNS - takes_long and all(run.gives_way_to(item.work, self.pace) for run in begun):
                return item
        return None

    def _take(self, first: Item[P, R], turns: Mapping[Item[P, R], float]) -> list[Item[P, R]]:
        """Remove an input, and the inputs of its group that fit beside it, from the queue and return them."""
        peers = [
            item
            for item in turns
            if item is not first
            and item.work.group == first.work.group
            and all(run.gives_way_to(item.work, self.pace) for run in self._parked)
        ]
        # Rows of similar length need the least padding; the sort is stable, so ties keep the order of turns.
        peers.sort(key=lambda item: abs(item.work.n_tokens - first.work.n_tokens))
        batch, size = [first], PassSize([first.work])
        for item in peers:
            if size.beside(item.work) <= self._max_batch_tokens:
                batch.append(item)
                size.add(item.work)
        for item in batch:
            del self._queue[item]
        self._fair_share.served(turns[first], shares(item.work for item in batch))
        return batch

    def _begin(self, batch: list[Item[P, R]]) -> Run[P, R]:
        loop = asyncio.get_running_loop()

        def wants(payload: object) -> bool:
            now = loop.time()
            return any(item.wanted(now) for item in run.items if payload is None or item.work.payload is payload)

        def parked() -> None:
            loop.call_soon_threadsafe(self._on_parked, run)

        def finished(payload: object, result: object) -> None:
            loop.call_soon_threadsafe(self._answer, run, payload, result)

        def dropped(payload: object) -> None:
            loop.call_soon_threadsafe(self._count_dropped, run, payload)

        control = Control(wants, parked, finished, dropped)
        left = not self._parked and any(item.work.group == batch[0].work.group for item in self._queue)
        run: Run[P, R] = Run(batch, loop.time, control, is_full=left)
        run.resume()
        run.task = asyncio.create_task(self._compute(run), name="run")
        return run

    def _on_parked(self, run: Run[P, R]) -> None:
        self._release_worker(run)
        self._parked.append(run)

    def _release_worker(self, run: Run[P, R]) -> None:
        is_new = not run.used_s
        self._guaranteed_s = _GUARANTEED_SHARE * run.current_turn_s if is_new and self._parked else 0.0
        run.pause()
        if self._active is run:
            self._active = None
        self._wake.set()

    async def _compute(self, run: Run[P, R]) -> None:
        items = run.items
        try:
            if await self._attempt(run):
                return
            # One by one, so that a failing input does not fail the others, and not for lack of room.
            run.is_full = False
            for item in items:
                run.items = [item]
                if item.wanted(run.clock()):
                    await self._attempt(run)
                else:
                    self._count_dropped(run, None)
        except asyncio.CancelledError:
            self._fail(items, self._draining_error())
            raise
        except Exception as exc:  # of the records after a pass: nobody else would tell those who wait
            self._fail(items, exc)
        finally:
            if run in self._parked:  # a parked run only ends by being cancelled
                self._parked.remove(run)
            self._release_worker(run)

    async def _attempt(self, run: Run[P, R]) -> bool:
        """Compute the items of a run and return whether that was all. A single item that fails gets the exception."""
        began_s = run.worker_s
        try:
            results = await self._run([item.work.payload for item in run.items], run.control)
            finished = list(zip(run.items, results, strict=True))
        except AbandonedError:
            self._count_dropped(run, None)
            return True
        except Exception as exc:
            away, self.last_forward_failed = isinstance(exc, UnavailableError), True
            if len(run.items) > 1 and not away:
                logger.warning("A forward pass of %d inputs failed; each runs alone now", len(run.items), exc_info=exc)
                return False
            if away and not self._is_away:
                logger.warning("Nothing can be computed: %s", exc)
            self._is_away = away
            self._fail(run.items, exc)
            return True
        finally:
            seconds = run.worker_s - began_s
            self._observer.worked(seconds)
        self.last_forward_failed = self._is_away = False
        self.pace.measure(run.cost, seconds, full=run.is_full, now=run.clock())
        self._observer.forward_done(rows=len(run.items), tokens=PassSize(item.work for item in run.items).tokens)
        for item, result in finished:
            self._answer(run, item.work.payload, result)
        return True

    def _count_dropped(self, run: Run[P, R], payload: object) -> None:
        """Report the items of a payload, or of all payloads (None), that ended without a result."""
        for item in run.items:
            meant = payload is None or payload is item.work.payload
            if meant and not item.is_counted and (item.future.cancelled() or not item.future.done()):
                item.is_counted = True
                self._observer.dropped(item.left)

    def _answer(self, run: Run[P, R], payload: object, result: object) -> None:
        """Set the result of an input; all time in which its run did not have the worker counts as waiting.

        A result that comes after the deadline may be cut short, because the engine makes no draws that nobody wants.
        """
        for item in run.items:
            if item.work.payload is payload and item.wanted(run.clock()):
                in_all = run.clock() - item.queued_at
                compute_s = min(run.worker_s, in_all)
                self._observer.waited(in_all - compute_s)
                item.future.set_result(Completed(cast(R, result), in_all - compute_s, compute_s))
