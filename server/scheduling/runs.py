"""Inputs under way: which share a run of the engine, how long it had the worker, and when it gives way to others."""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from blora.server.scheduling.control import Control
from blora.server.scheduling.pace import Pace

__all__ = ["OWN_SHARE", "Completed", "DropReason", "Item", "Run", "Work", "padded_tokens"]

P = TypeVar("P")
R = TypeVar("R")

DropReason = Literal["cancelled", "expired"]

# A run gives way to an input of another owner that will take less time than the run has had, and to one of an owner of
# its own that will take less than this part of it, once the run has had more than a full forward pass takes.
OWN_SHARE = 0.25
# How much longer than another a run may have had the worker before that one goes on, in seconds.
_LEAD_S = 1.0


@dataclass(frozen=True, slots=True)
class Work(Generic[P]):
    """One input to compute.

    Attributes:
        payload: what the worker gets.
        lengths: of the parts of its row, in tokens; rows are padded part by part.
        n_draws: those that its row is certain to take.
        group: only equal ones share a forward pass; it fixes n_draws.
        owner: whose it is; owners take turns, whatever each has waiting.
        most_draws: those that its row may take; 0 for no more than are certain.
        overhead: what has to be done beside its row, as tokens x draws that take as long.
    """

    payload: P
    lengths: tuple[int, ...]
    n_draws: int
    group: Hashable
    owner: Hashable = None
    most_draws: int = 0
    overhead: int = 0

    @property
    def n_tokens(self) -> int:
        """Length of the row."""
        return sum(self.lengths)

    @property
    def cost(self) -> int:
        """Tokens x draws, the unit of every limit here."""
        return self.n_tokens * self.n_draws + self.overhead

    @property
    def most(self) -> int:
        """Tokens x draws that it may come to."""
        return self.n_tokens * max(self.n_draws, self.most_draws) + self.overhead


@dataclass(frozen=True, slots=True)
class Completed(Generic[R]):
    """A result, and the seconds it waited and took."""

    result: R
    queue_s: float
    compute_s: float


@dataclass(eq=False, slots=True)
class Item(Generic[P, R]):
    """An input and who waits for its result."""

    work: Work[P]
    future: asyncio.Future[Completed[R]]
    queued_at: float
    deadline: float
    left: DropReason = "expired"
    """Why nobody wants it any more, once that is so."""

    def wanted(self, now: float) -> bool:
        """Return whether somebody waits for the result, in any thread."""
        return not self.future.done() and now < self.deadline


def padded_tokens(batch: Sequence[Item[P, R]]) -> int:
    """Tokens x draws of a forward pass, padding and what has to be done beside it included."""
    parts: Iterable[tuple[int, ...]] = zip(*(item.work.lengths for item in batch), strict=True)
    return len(batch) * sum(map(max, parts)) * batch[0].work.n_draws + sum(item.work.overhead for item in batch)


@dataclass(eq=False, slots=True)
class Run(Generic[P, R]):
    """Items that the engine computes together, now or when others have had their turn.

    Attributes:
        items: those inputs.
        control: stops it, and has it wait.
        is_full: whether others had to stay behind for lack of room.
        used_s: how long it had the worker until it gave way for the last time.
        since: when it last got the worker, None while it waits.
    """

    items: list[Item[P, R]]
    clock: Callable[[], float]
    control: Control
    is_full: bool
    used_s: float = 0.0
    since: float | None = None
    task: "asyncio.Task[None] | None" = field(default=None)

    @property
    def cost(self) -> int:
        """Tokens x draws of all items."""
        return sum(item.work.cost for item in self.items)

    @property
    def stint_s(self) -> float:
        """How long it has had the worker since it last got it."""
        return self.clock() - self.since if self.since is not None else 0.0

    @property
    def had_s(self) -> float:
        """How long it has had the worker in all."""
        return self.used_s + self.stint_s

    @property
    def is_wanted(self) -> bool:
        """Return whether somebody waits for one of its results."""
        now = self.clock()
        return any(item.wanted(now) for item in self.items)

    def get(self) -> None:
        """It has the worker from now on."""
        self.since = self.clock()
        self.control.go_on()

    def give(self) -> None:
        """It has the worker no longer."""
        self.used_s, self.since = self.had_s, None

    def gives_way_to(self, work: Work[P], pace: Pace) -> bool:
        """Return whether an input that has not begun goes before the rest of this run."""
        expected = pace.seconds(work.cost)
        if all(work.owner != item.work.owner for item in self.items):
            return self.had_s >= expected
        return OWN_SHARE * self.had_s >= expected and self.had_s >= pace.seconds(pace.max_batch_tokens)

    def is_ahead_of(self, other: "Run[P, R]") -> bool:
        """Return whether it has had so much more time than another that this one should go on."""
        return self.had_s > other.had_s + _LEAD_S
