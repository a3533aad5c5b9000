"""Fair shares of the worker among owners, measured in work."""

from collections.abc import Hashable
from dataclasses import dataclass

from blora.server.scheduling.fair_share import FairShare


@dataclass(frozen=True)
class Piece:
    owner: Hashable
    cost: int


def test_one_owners_come_one_after_the_other_and_owners_side_by_side() -> None:
    waiting = [Piece("a", 5), Piece("a", 7), Piece("b", 2), Piece("a", 1), Piece("b", 3)]
    assert FairShare().turns(waiting) == [0, 5, 0, 12, 2]


def test_who_was_served_comes_after_who_was_not() -> None:
    shares = FairShare()
    shares.served(0.0, [Piece("a", 10)])
    assert shares.turns([Piece("a", 1), Piece("b", 1)]) == [10, 0]


def test_a_newcomer_begins_now_and_not_when_everybody_began() -> None:
    shares = FairShare()
    shares.served(0.0, [Piece("a", 10)])
    shares.served(10.0, [Piece("a", 10)])
    assert shares.turns([Piece("b", 1), Piece("a", 1)]) == [10, 20]


def test_once_nobody_waits_all_are_equal_again() -> None:
    shares = FairShare()
    shares.served(0.0, [Piece("a", 10)])
    shares.reset()
    assert shares.turns([Piece("a", 1), Piece("b", 1)]) == [0, 0]
