"""Which failures are worth another try, and after how long."""

import pytest

from blora.client.errors import (
    ClientError,
    DeadlineError,
    FailedError,
    MalformedAnswerError,
    OverloadedError,
    RefusedError,
    UnavailableError,
    UnreachableError,
)
from blora.client.retries import Retries
from blora.errors import ConfigError


@pytest.mark.parametrize("kind", [OverloadedError, UnavailableError, UnreachableError])
def test_what_did_not_get_through_is_tried_again_so_many_times(kind: type[ClientError]) -> None:
    retries = Retries(most=3)
    assert all(retries.wait_s(kind("no"), n_tries) is not None for n_tries in (1, 2, 3))
    assert retries.wait_s(kind("no"), 4) is None
    assert Retries(most=0).wait_s(kind("no"), 1) is None
    assert Retries().wait_s(kind("no"), 1_000_000) is not None


@pytest.mark.parametrize("kind", [RefusedError, FailedError, DeadlineError, MalformedAnswerError])
def test_what_would_end_the_same_way_is_not(kind: type[ClientError]) -> None:
    assert Retries().wait_s(kind("no", retry_after_s=1.0), 1) is None


def test_waits_grow_to_a_limit_and_differ() -> None:
    retries = Retries(first_wait_s=1.0, longest_wait_s=8.0)
    for n_tries, limit in ((1, 1.0), (2, 2.0), (4, 8.0), (50, 8.0), (5000, 8.0)):
        waits = [retries.wait_s(UnreachableError("no"), n_tries) or 0.0 for _ in range(200)]
        assert 0.8 * limit < max(waits) <= limit
        assert len(set(waits)) > 100


def test_no_wait_is_shorter_than_the_server_asks() -> None:
    waits = [Retries().wait_s(OverloadedError("no", retry_after_s=7.0), 1) or 0.0 for _ in range(100)]
    assert 7.0 <= min(waits) <= max(waits) <= 7.2


@pytest.mark.parametrize("name", ["most", "first_wait_s", "longest_wait_s"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_number_that_is_no_count_or_time_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"got {name}={value} in Retries, expected 0 or more"):
        Retries(**{name: value})
