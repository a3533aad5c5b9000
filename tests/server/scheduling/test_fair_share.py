"""Fair shares of the worker among owners, measured in work."""

from collections.abc import Hashable
from dataclasses import dataclass

import pytest

from blora.server.scheduling import fair_share
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


@pytest.mark.parametrize("moves_on", [False, True])
def test_of_very_many_owners_those_who_were_served_most_are_remembered(
    monkeypatch: pytest.MonkeyPatch, moves_on: bool
) -> None:
    monkeypatch.setattr(fair_share, "_MOST_OWNERS", 10)
    shares = FairShare()
    shares.served(0.0, [Piece("a", 10_000)])
    for owner in range(1000):
        shares.served(float(owner * moves_on), [Piece(owner, 1)])
    assert len(shares._next) <= 10
    assert shares.turns([Piece("a", 1)]) == [10_000]
