"""Fair sharing of the worker: owners take turns by the work done for them."""

import heapq
from collections.abc import Hashable, Iterable
from operator import itemgetter
from typing import Protocol

__all__ = ["FairShare", "Owned"]

# Most owners whose next turns are remembered.
_MOST_OWNERS = 4096


class Owned(Protocol):
    """A waiting piece of work."""

    @property
    def owner(self) -> Hashable:
        """Owner of the work."""

    @property
    def cost(self) -> int:
        """Cost of the work, in tokens x draws."""


class FairShare:
    """Order of waiting work by start-time fair queueing (Goyal, Vin, Cheng, 1997).

    A turn is a virtual start time in tokens x draws; the smallest goes first. An input's turn comes after the turns of
    its owner's earlier inputs. Work counts from the time at which the owner began to wait, so that idle owners gain no
    advantage. Of very many owners, those with the earliest next turns are forgotten.
    """

    def __init__(self) -> None:
        self._now = 0.0  # turn of the batch served last
        self._next: dict[Hashable, float] = {}  # next turn of each owner served since the last reset

    def turns(self, waiting: Iterable[Owned]) -> list[float]:
        """Return the turn of each waiting piece of work.

        Args:
            waiting: the waiting work, in order of arrival.
        """
        upcoming: dict[Hashable, float] = {}
        turns = []
        for work in waiting:
            turn = upcoming.get(work.owner)
            if turn is None:
                turn = self._first(work.owner)
            turns.append(turn)
            upcoming[work.owner] = turn + work.cost
        return turns

    def served(self, turn: float, batch: Iterable[Owned]) -> None:
        """Record that a batch is being served, whose first input had this turn."""
        self._now = turn
        for work in batch:
            self._next[work.owner] = self._first(work.owner) + work.cost
        if len(self._next) > _MOST_OWNERS:  # half of them, so that this happens rarely
            self._next = dict(heapq.nlargest(_MOST_OWNERS // 2, self._next.items(), key=itemgetter(1)))

    def reset(self) -> None:
        """Forget all turns, once nobody waits."""
        self._next.clear()

    def _first(self, owner: Hashable) -> float:
        return max(self._now, self._next.get(owner, 0.0))
