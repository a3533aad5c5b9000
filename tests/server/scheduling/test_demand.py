"""Refused work counts for half a minute, and is forgotten whether or not anybody asks for it."""

from blora.server.scheduling.demand import KEPT_S, RefusedWork


def test_refused_work_counts_for_a_while() -> None:
    refused = RefusedWork()
    refused.add(0.0, 2.0)
    refused.add(10.0, 3.0)
    assert [refused.seconds(now) for now in (10.0, KEPT_S, KEPT_S + 1, KEPT_S + 11)] == [5.0, 5.0, 3.0, 0.0]


def test_refusals_are_forgotten_though_nobody_asks_for_them() -> None:
    refused = RefusedWork()
    for k in range(1000):
        refused.add(float(k), 1.0)
    assert len(refused._refused) == KEPT_S + 1
