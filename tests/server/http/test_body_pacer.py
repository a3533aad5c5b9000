"""Pacing of bodies: short ones are not paced, and an owner's long ones are read one after another."""

from collections.abc import Hashable
from typing import Any

import pytest

from blora.server.errors import RateLimitedError
from blora.server.http import body_pacer
from blora.server.http.body_pacer import BodyPacer

MIB = 2**20


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_short_bodies_are_free_however_many() -> None:
    inflow = BodyPacer(Clock())
    assert {inflow.delay("a", 0, 2**16, most_s=20) for _ in range(10_000)} == {0.0}


def test_one_long_body_waits_for_nothing() -> None:
    inflow, quarter = BodyPacer(Clock()), MIB // 4
    assert [inflow.delay("a", had, quarter, most_s=20) for had in range(0, MIB, quarter)] == [0.0] * 4


@pytest.mark.parametrize("n_pieces", [1, 16])
def test_forty_at_once_take_seconds_in_whatever_pieces_they_come(n_pieces: int) -> None:
    inflow, piece = BodyPacer(Clock()), MIB // n_pieces
    delays = [inflow.delay("a", k * piece, piece, most_s=20) for k in range(n_pieces) for _ in range(40)]
    assert delays == sorted(delays)
    assert 2 < delays[-1] < 2.5


def test_another_owner_does_not_wait_for_them() -> None:
    inflow = BodyPacer(Clock())
    assert max(inflow.delay("a", 0, MIB, most_s=20) for _ in range(40)) > 2
    assert inflow.delay("b", 0, MIB, most_s=20) == 0


def test_whoever_has_waited_has_paid() -> None:
    clock = Clock()
    inflow = BodyPacer(clock)
    for _ in range(40):
        clock.now += inflow.delay("a", 0, MIB, most_s=20)
    assert 2 < clock.now - 100 < 2.5
    clock.now += 1
    assert inflow.delay("a", 0, MIB, most_s=20) == 0


def test_what_would_wait_too_long_is_told_when_to_come_back_and_counts_for_nothing() -> None:
    clock = Clock()
    inflow = BodyPacer(clock)
    refusals = []
    for _ in range(1000):
        try:
            inflow.delay("a", 0, MIB, most_s=20)
        except RateLimitedError as error:
            refusals.append(error.retry_after_s)
    assert 650 < len(refusals) < 700  # 16 MiB for each of 20 s are let in
    assert set(refusals) == {21}
    clock.now += 1
    assert inflow.delay("a", 0, MIB, most_s=20) < 20


def test_owners_without_a_debt_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_pacer, "_MIN_OWNERS", 10)
    clock = Clock()
    inflow = BodyPacer(clock)
    for owner in range(100):
        clock.now += 1
        inflow.delay(owner, 0, 40 * MIB, most_s=20)
    assert len(inflow._paid_until) <= 10
    assert inflow.delay(99, 0, MIB, most_s=20) > 2


def test_debts_are_looked_through_rarely_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Debts(dict[Hashable, float]):
        looks = 0

        def items(self) -> Any:
            Debts.looks += 1
            return super().items()

    monkeypatch.setattr(body_pacer, "_MIN_OWNERS", 10)
    inflow = BodyPacer(Clock())
    for owner in range(1000):
        inflow._paid_until = Debts(inflow._paid_until)
        inflow.delay(owner, 0, 40 * MIB, most_s=20)
    assert len(inflow._paid_until) == 1000
    assert Debts.looks == 7  # at 10, 20, 40 and so on
