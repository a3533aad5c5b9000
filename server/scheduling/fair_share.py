"""Whose turn it is: owners share the worker by work done, whatever each has waiting."""

from collections.abc import Hashable, Iterable
from typing import Protocol

__all__ = ["FairShare", "Owned"]


class Owned(Protocol):
    """Something that waits."""

    @property
    def owner(self) -> Hashable:
        """Whose it is."""

    @property
    def cost(self) -> int:
        """What it takes, in tokens x draws."""


class FairShare:
    """Start-time fair queueing (Goyal, Vin, Cheng, 1997).

    An input's turn comes when its owner's earlier ones are done, and work counts from when the owner began to wait, so
    nobody saves turns up. A turn is a number of tokens x draws; the smallest goes first.
    """

    def __init__(self) -> None:
        self._now = 0.0  # the turn of what went last
        self._next: dict[Hashable, float] = {}  # of owners that have been served since nobody waited

    def of(self, waiting: Iterable[Owned]) -> list[float]:
        """When each would go, were all of it done in turn.

        Args:
            waiting: in order of arrival.
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

    def went(self, turn: float, batch: Iterable[Owned]) -> None:
        """A batch is being done, and `turn` was that of its first."""
        self._now = turn
        for work in batch:
            self._next[work.owner] = self._first(work.owner) + work.cost

    def forget(self) -> None:
        """Nobody waits."""
        self._next.clear()

    def _first(self, owner: Hashable) -> float:
        return max(self._now, self._next.get(owner, 0.0))
