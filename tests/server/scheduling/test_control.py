"""Control of runs: parking, resuming and stopping, in every order of the calls."""

from concurrent.futures import Future

import pytest

from blora.server.scheduling.control import AbandonedError, Control


def soon(turn: "Future[None]") -> None:
    turn.result(timeout=1)


def test_a_run_waits_once_it_is_asked_to_and_until_it_may_go_on() -> None:
    waited: list[Future[None]] = []
    control = Control()
    control.checkpoint(waited.append)
    control.park()
    control.checkpoint(waited.append)
    [turn] = waited
    assert not turn.done()
    control.go_on()
    assert turn.done()
    control.checkpoint(waited.append)
    assert waited == [turn]


def test_a_run_that_is_told_to_go_on_and_to_wait_again_before_it_waits_announces_the_second_wait_too() -> None:
    announced: list[None] = []

    def parked() -> None:
        announced.append(None)
        if len(announced) == 1:
            control.go_on()
            control.park()
        else:
            control.go_on()

    control = Control(parked=parked)
    control.park()
    control.checkpoint(soon)
    assert control.is_to_park
    control.checkpoint(soon)
    assert len(announced) == 2


def test_a_run_that_nobody_wants_any_more_is_stopped_where_it_waits() -> None:
    wanted = [True, False]
    control = Control(wants=lambda payload: wanted.pop(0))
    control.park()
    with pytest.raises(AbandonedError):
        control.checkpoint(lambda turn: control.go_on())
