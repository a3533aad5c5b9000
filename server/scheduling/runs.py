"""Inputs and runs of the engine: their cost, their worker time, and the rule by which runs give way to inputs."""

import asyncio
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

from blora.server.scheduling.control import Control
from blora.server.scheduling.pace import Pace

__all__ = ["OWN_SHARE", "Completed", "DropReason", "Item", "PassSize", "Run", "Share", "Work", "shares"]

P = TypeVar("P")
R = TypeVar("R")

DropReason = Literal["cancelled", "expired"]

# A run gives way to an input of another owner that needs less time than the run has had. To an input of an owner in the
# run it gives way if the input needs less than this share of that time, once the run has had the time of a full pass.
OWN_SHARE = 0.25
# Seconds of worker time by which the active run may be ahead of a parked one before they change places.
_LEAD_S = 1.0


@dataclass(frozen=True, slots=True)
class Work(Generic[P]):
    """One input to compute.

    Attributes:
        payload: the argument for the worker.
        lengths: lengths of the parts of its row, in tokens; rows are padded part by part.
        n_draws: number of draws that are made in any case.
        group: key of the inputs that may share a forward pass; equal groups have equal n_draws.
        owner: the owner; owners take turns.
        most_draws: largest number of draws that may be made; 0 for n_draws.
        overhead: additional work, as the number of tokens x draws that take equally long.
        text: key of the inputs whose rows begin with the same text, which a run reads once; None for no such inputs.
        text_tokens: length of that text, in tokens of the first part of the row.
    """

    payload: P
    lengths: tuple[int, ...]
    n_draws: int
    group: Hashable
    owner: Hashable = None
    most_draws: int = 0
    overhead: int = 0
    text: Hashable = None
    text_tokens: int = 0

    @property
    def n_tokens(self) -> int:
        """Length of the row, in tokens."""
        return sum(self.lengths)

    @property
    def cost(self) -> int:
        """Expected work, in tokens x draws."""
        return sum(self.lengths) * self.n_draws + self.overhead

    @property
    def most(self) -> int:
        """Largest possible work, in tokens x draws."""
        return self.n_tokens * max(self.n_draws, self.most_draws) + self.overhead


class Share(NamedTuple):
    """The part of an input in the work of several, in tokens x draws, and its owner."""

    owner: Hashable
    cost: int


def shares(works: Iterable[Work[P]]) -> list[Share]:
    """Return the share of each input in the work of all of them; a text counts for the first input that reads it."""
    read: set[Hashable] = set()
    found = []
    for work in works:
        cost = work.cost
        if work.text is not None:
            if work.text in read:
                cost -= work.text_tokens * work.n_draws
            read.add(work.text)
        found.append(Share(work.owner, cost))
    return found


@dataclass(frozen=True, slots=True)
class Completed(Generic[R]):
    """A result, with the seconds of waiting and of computing."""

    result: R
    queue_s: float
    compute_s: float


@dataclass(eq=False, slots=True)
class Item(Generic[P, R]):
    """A queued input and the future of its result."""

    work: Work[P]
    future: asyncio.Future[Completed[R]]
    queued_at: float
    deadline: float
    left: DropReason = "expired"
    """Reason for dropping the input, once it is dropped."""
    is_counted: bool = False
    """True once the input has been reported as dropped."""

    def wanted(self, now: float) -> bool:
        """Return whether the result is still wanted; safe to call in any thread."""
        return not self.future.done() and now < self.deadline


class PassSize(Generic[P]):
    """Size of a forward pass, which is known for one more input without a look at all others.

    Args:
        works: the first inputs.

    Attributes:
        tokens: the size in tokens x draws, including padding and overhead; a shared text counts once.
    """

    def __init__(self, works: Iterable[Work[P]]) -> None:
        self.tokens = 0
        self._n_rows = self._text_tokens = self._overhead = 0
        self._longest: tuple[int, ...] = ()  # of each part of the rows, the first one without a shared text
        self._texts: set[Hashable] = set()
        for work in works:
            self.add(work)

    def add(self, work: Work[P]) -> None:
        """Add an input."""
        self.tokens = self.beside(work)
        self._longest, self._text_tokens = self._padded(work)
        self._n_rows += 1
        self._overhead += work.overhead
        self._texts.add(work.text)

    def beside(self, work: Work[P]) -> int:
        """Return the size with another input."""
        longest, text_tokens = self._padded(work)
        return ((self._n_rows + 1) * sum(longest) + text_tokens) * work.n_draws + self._overhead + work.overhead

    def _padded(self, work: Work[P]) -> tuple[tuple[int, ...], int]:
        """Return the longest parts and the tokens of all texts with another input."""
        own = (work.lengths[0] - work.text_tokens, *work.lengths[1:])
        longest = tuple(map(max, self._longest, own)) if self._n_rows else own
        return longest, self._text_tokens + (0 if work.text in self._texts else work.text_tokens)


@dataclass(eq=False, slots=True)
class Run(Generic[P, R]):
    """Items that the engine computes together; the run is active or parked.

    Attributes:
        items: the inputs.
        clock: the event loop's clock, in seconds.
        control: parks, resumes and stops the run.
        is_full: whether inputs stayed behind for lack of room.
        used_s: worker time until the run was last parked, in seconds.
        since: time at which the run last got the worker; None while parked.
        task: the task that computes the run.
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
        return sum(share.cost for share in shares(item.work for item in self.items))

    @property
    def current_turn_s(self) -> float:
        """Seconds since the run last got the worker; 0 while parked."""
        return self.clock() - self.since if self.since is not None else 0.0

    @property
    def worker_s(self) -> float:
        """Total worker time, in seconds."""
        return self.used_s + self.current_turn_s

    @property
    def is_wanted(self) -> bool:
        """Return whether any result of the run is still wanted."""
        now = self.clock()
        return any(item.wanted(now) for item in self.items)

    def resume(self) -> None:
        """Give the worker to the run."""
        self.since = self.clock()
        self.control.go_on()

    def pause(self) -> None:
        """Take the worker from the run."""
        self.used_s, self.since = self.worker_s, None

    def gives_way_to(self, work: Work[P], pace: Pace) -> bool:
        """Return whether a waiting input goes before the rest of this run."""
        expected = pace.seconds(work.cost)
        if all(work.owner != item.work.owner for item in self.items):
            return self.worker_s >= expected
        return OWN_SHARE * self.worker_s >= expected and self.worker_s >= pace.seconds(pace.max_batch_tokens)

    def is_ahead_of(self, other: "Run[P, R]") -> bool:
        """Return whether this run is far enough ahead of another in worker time for the other one to go on."""
        return self.worker_s > other.worker_s + _LEAD_S
