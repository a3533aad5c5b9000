"""Waiting work in a line for each owner, so that finding the next piece takes no time for those behind it."""

from collections.abc import Hashable
from typing import Generic, TypeVar

from blora.server.scheduling.admission import Held
from blora.server.scheduling.fair_share import Owned

__all__ = ["Lines"]

W = TypeVar("W", bound=Owned)


class Lines(Generic[W]):
    """Waiting pieces of work, which are different objects and equal to no other."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, dict[W, None]] = {}  # each in order of arrival
        self._costs: dict[Hashable, int] = {}  # of each line

    def add(self, piece: W) -> None:
        """Put a piece of work at the end of its owner's line."""
        self._lines.setdefault(piece.owner, {})[piece] = None
        self._costs[piece.owner] = self._costs.get(piece.owner, 0) + piece.cost

    def remove(self, piece: W) -> None:
        """Take a piece of work out of its line, wherever it stands."""
        line = self._lines[piece.owner]
        del line[piece]
        self._costs[piece.owner] -= piece.cost
        if not line:
            del self._lines[piece.owner], self._costs[piece.owner]

    def firsts(self) -> list[W]:
        """Return the first piece of each line, in no order."""
        return [next(iter(line)) for line in self._lines.values()]

    def held(self) -> dict[Hashable, Held]:
        """Return what each owner has waiting."""
        return {owner: Held(len(line), self._costs[owner]) for owner, line in self._lines.items()}
