"""Inputs that fail, batchers that stop, and what becomes of an input whose deadline or client is gone."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest

from blora.server.errors import DeadlineExceededError, DrainingError
from blora.server.scheduling.batcher import Batcher
from blora.server.scheduling.control import Control
from tests.server.scheduling.test_batcher import LIMITS, Bench, bench, settle


def bench_of(run: Callable[[Sequence[str], Control], Awaitable[list[str]]]) -> Bench:
    """Return a bench whose batcher, not started yet, computes by a function of the test's own."""
    b = Bench()
    b.batcher = Batcher(run, observer=b.notes, **LIMITS)
    return b


async def test_a_poisoned_input_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as b:
        held = await b.hold()
        tasks = [b.submit(name) for name in ("one", "bad", "two")]
        await settle()
        _, one, bad, two = await b.release(held, *tasks)
        assert (one.result, two.result) == ("ONE", "TWO")
        assert isinstance(bad, RuntimeError)
        assert b.worker.batches == [["one", "bad", "two"], ["one"], ["bad"], ["two"]]
        assert not b.batcher.last_forward_failed
    [record] = caplog.records  # the caller logs the failure of an input alone
    assert record.message == "A forward pass of 3 inputs failed; each runs alone now"
    assert "poisoned" in caplog.text


async def test_a_failure_is_remembered_until_a_success() -> None:
    async with bench() as b:
        b.worker.seconds = 0.01
        with pytest.raises(RuntimeError, match="poisoned"):
            await b.submit("bad")
        assert b.batcher.last_forward_failed
        await b.submit("good")
        assert not b.batcher.last_forward_failed
        assert [seconds >= 0.009 for seconds in b.notes.worked_s] == [True, True]


@pytest.mark.parametrize("record", ["worked", "forward_done", "waited"])
async def test_a_record_that_fails_is_told_at_once(record: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no room for the record")

    async with bench() as b:
        held = await b.hold()
        monkeypatch.setattr(b.notes, record, fail)
        tasks = [b.submit(name) for name in ("one", "two")]
        await settle()
        for failure in await b.release(held, *tasks):
            assert isinstance(failure, RuntimeError)
            assert str(failure) == "no room for the record"
        monkeypatch.undo()
        assert (await b.submit("three")).result == "THREE"


async def test_a_timeout_of_the_worker_is_no_deadline() -> None:
    async def run(payloads: Sequence[str], control: Control) -> list[str]:
        raise TimeoutError("the device is slow")

    b = Bench()
    b.batcher = Batcher(run, observer=b.notes, **dict.fromkeys(LIMITS, 9))
    b.batcher.start()
    with pytest.raises(TimeoutError, match="the device is slow"):
        await b.submit("x", n_tokens=1)
    await b.batcher.stop()


async def test_a_worker_that_loses_results_fails_the_batch_and_not_the_batcher() -> None:
    async def run(payloads: Sequence[str], control: Control) -> list[str]:
        return []

    b = Bench()
    b.batcher = Batcher(run, observer=b.notes, **dict.fromkeys(LIMITS, 9))
    b.batcher.start()
    for _ in range(2):
        with pytest.raises(ValueError, match="shorter"):
            await b.submit("x", n_tokens=1)
    await b.batcher.stop()


async def test_a_batcher_that_stops_tells_all_inputs_and_refuses_newcomers() -> None:
    async with bench() as b:
        held = await b.hold()
        waiting = b.submit("waiting")
        await settle()
        await b.batcher.stop()
        for task in (held, waiting, b.submit("late")):
            with pytest.raises(DrainingError, match="another replica"):
                await asyncio.wait_for(task, 1)


async def test_a_batcher_that_stops_tells_the_inputs_of_a_run_that_has_not_begun() -> None:
    b = Bench()  # its worker has not begun
    asked = b.submit("x")
    await settle()
    b.batcher._active = b.batcher._next()
    await b.batcher.stop()
    with pytest.raises(DrainingError):
        await asyncio.wait_for(asked, 1)
    assert b.worker.batches == []


async def test_a_batcher_that_stops_tells_the_rest_of_a_batch_that_failed_together() -> None:
    async with bench() as b:
        asked = [b.submit(name) for name in ("bad", "held", "other")]
        retried = asyncio.Event()

        async def run(payloads: Sequence[str], control: Control) -> list[str]:
            if len(payloads) > 1:
                raise RuntimeError("one of them is bad")
            retried.set()
            await asyncio.Event().wait()
            return []

        b.batcher._run = run
        await retried.wait()
        await b.batcher.stop()
        for task in asked:
            with pytest.raises(DrainingError):
                await asyncio.wait_for(task, 1)


async def test_a_deadline_may_pass_while_the_next_run_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Bench()  # its worker has not begun
    asked = b.submit("late", timeout_s=5)
    await settle()
    loop = asyncio.get_running_loop()
    now, jumps = loop.time, iter([0, 10])
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: now() + next(jumps, 0))  # the second look at it is too late
        run = b.batcher._next()
    assert run is not None
    assert (await asked).result == "LATE"
    await b.batcher.stop()


async def test_a_parked_run_that_nobody_wants_any_more_ends_before_others_go_on_or_begin() -> None:
    b = Bench()  # its worker has not begun
    b.worker.gate.clear()
    leaving, parked, active = asked = [b.submit(name, group=name) for name in ("leaving", "parked", "active")]
    await settle()
    gone, other, going = (run for _ in asked if (run := b.batcher._next()) is not None)
    b.batcher._active = going
    for run in (gone, other):
        b.batcher._on_parked(run)
    gone.used_s, b.batcher._guaranteed_s = 5.0, 0.0
    assert not b.batcher._should_park(going)
    leaving.cancel()
    await settle()
    assert b.batcher._should_park(going)
    waiting = b.submit("waiting", owner="other")
    await settle()
    assert b.batcher._next() is gone
    await b.batcher.stop()
    for task in (parked, active, waiting):
        with pytest.raises(DrainingError):
            await task


async def test_a_result_after_the_deadline_is_none() -> None:
    async def run(payloads: Sequence[str], control: Control) -> list[str]:
        while control.wants(payloads[0]):
            time.sleep(0.01)  # no other task sees the deadline pass
        return ["CUT SHORT"]

    b = bench_of(run)
    b.batcher.start()
    with pytest.raises(DeadlineExceededError):
        await b.submit("late", timeout_s=0.05)
    await b.batcher.stop()


async def test_an_input_that_nobody_wants_is_counted_once() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def run(payloads: Sequence[str], control: Control) -> list[str]:
        began.set()
        await go_on.wait()
        control.dropped(payloads[0])
        await settle()
        control.look()
        return []

    b = bench_of(run)
    b.batcher.start()
    asked = [b.submit(name) for name in ("one", "other")]
    await began.wait()
    for task in asked:
        task.cancel()
    await settle()
    go_on.set()
    async with asyncio.timeout(5):
        while b.batcher.silent_s:  # until the run has ended
            await asyncio.sleep(0)
    await b.batcher.stop()
    assert b.notes.drops == ["cancelled"] * 2


async def test_an_input_whose_client_leaves_a_run_that_goes_on_is_counted() -> None:
    async def run(payloads: Sequence[str], control: Control) -> list[str]:
        asked[0].cancel()
        await settle()
        control.dropped(payloads[0])
        return [payload.upper() for payload in payloads]

    b = bench_of(run)
    asked = [b.submit(name) for name in ("leaving", "staying")]
    await settle()
    b.batcher.start()
    assert (await asked[1]).result == "STAYING"
    await b.batcher.stop()
    assert b.notes.drops == ["cancelled"]


async def test_a_batcher_without_a_worker_is_silent_for_ever() -> None:
    async with bench() as b:
        assert b.batcher.silent_s == 0
        assert b.batcher._worker is not None
        b.batcher._worker.cancel()
        await settle()
        assert b.batcher.silent_s == math.inf


async def test_a_batcher_is_silent_since_its_runs_last_sign_and_after_its_stop_no_more() -> None:
    async with bench() as b:
        held = await b.hold()
        run = b.batcher._active
        assert run is not None
        assert 0 <= b.batcher.silent_s < 1000
        run.control.last_sign -= 1000
        assert 1000 <= b.batcher.silent_s < 2000
        await b.batcher.stop()
        assert b.batcher.silent_s == 0
        await b.release(held)


@pytest.mark.parametrize(("had_s", "expected_s"), [(0.25, 0.75), (3.0, 2.0)])
async def test_a_run_that_is_overdue_is_expected_to_take_the_time_of_its_delay_again(
    had_s: float, expected_s: float
) -> None:
    async with bench() as b:
        held = await b.hold()  # 10 tokens
        b.batcher.pace.measure(10, 1.0, full=False, now=0)
        run = b.batcher._active
        assert run is not None
        run.clock = lambda: (run.since or 0.0) + had_s
        assert b.batcher.backlog_s == pytest.approx(expected_s)
        await b.release(held)


async def test_a_client_that_leaves_a_batch_that_failed_together_is_not_asked_for_alone() -> None:
    async with bench() as b:
        held = await b.hold()
        asked = [b.submit(name) for name in ("bad", "leaving", "staying")]
        await settle()
        attempts: list[list[str]] = []

        async def run(payloads: Sequence[str], control: Control) -> list[str]:
            attempts.append(list(payloads))
            if len(payloads) > 1:
                asked[1].cancel()
                await settle()
            if "bad" in payloads:
                raise RuntimeError("one of them is bad")
            return [payload.upper() for payload in payloads]

        b.batcher._run = run
        await b.release(held, *asked)
        assert attempts == [["bad", "leaving", "staying"], ["bad"], ["staying"]]
        assert asked[2].result().result == "STAYING"
        assert b.notes.drops == ["cancelled"]


async def test_an_input_that_was_answered_before_the_others_left_is_no_drop() -> None:
    async def run(payloads: Sequence[str], control: Control) -> list[str]:
        control.finished(payloads[0], "EARLY")
        await settle()
        asked[1].cancel()
        await settle()
        control.look()
        return []

    b = bench_of(run)
    asked = [b.submit(name) for name in ("early", "leaving")]
    await settle()
    b.batcher.start()
    assert (await asked[0]).result == "EARLY"
    async with asyncio.timeout(5):
        while not b.notes.drops:
            await asyncio.sleep(0)
    await b.batcher.stop()
    assert b.notes.drops == ["cancelled"]
