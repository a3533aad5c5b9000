"""Tasks in their own threads: results, errors, and tasks that never end."""

import asyncio
import logging
import threading
import time

import pytest

from blora.server.keys import KEY, Key, client_name
from blora.server.scheduling.thread_per_task import MOST_GIVEN_UP, StalledError, ThreadPerTask


async def test_it_returns_what_the_work_returns_and_raises_what_it_raises() -> None:
    threads = ThreadPerTask(10)
    KEY.set(Key("ops", "admin"))
    assert await threads.run("a name", lambda: (client_name(), threading.current_thread().name)) == ("ops", "a name")
    with pytest.raises(TimeoutError, match="of its own"):
        await threads.run("an error", lambda: raising(TimeoutError("of its own")))


def raising(error: Exception) -> None:
    raise error


async def test_a_piece_that_stalls_is_given_up_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    threads, gate = ThreadPerTask(0.2), threading.Event()
    try:
        with pytest.raises(StalledError, match=r"the folder of x did not end within 0\.2 s and was abandoned"):
            await threads.run("the folder of x", gate.wait)
        assert await threads.run("another", lambda: 1) == 1
        began = time.monotonic()
        with pytest.raises(StalledError, match="have not ended: the folder of x; check the file system"):
            await ThreadPerTask.run(threads, "the folder of x", lambda: 2)
        assert time.monotonic() - began < 0.2
    finally:
        gate.set()
    with caplog.at_level(logging.WARNING):
        assert await again(threads, "the folder of x") == 3
    assert "the folder of x ended after 0 s; it had been abandoned" in caplog.text


async def test_a_piece_of_something_else_is_not_held_up_by_one_of_the_same_description() -> None:
    threads, gate = ThreadPerTask(0.2), threading.Event()
    try:
        with pytest.raises(StalledError):
            await threads.run("the folder of x", gate.wait, of="one")
        assert await threads.run("the folder of x", lambda: 1, of="two") == 1
        with pytest.raises(StalledError, match="not tried now"):
            await threads.run("the folder of x", lambda: 2, of="one")
    finally:
        gate.set()


async def again(threads: ThreadPerTask, what: str) -> int:
    """Return the result of a task once the earlier one has ended."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await threads.run(what, lambda: 3)
            except StalledError:
                await asyncio.sleep(0.01)


async def test_no_more_than_a_few_threads_are_left_behind() -> None:
    threads, gate = ThreadPerTask(0.05), threading.Event()
    try:
        for i in range(MOST_GIVEN_UP):
            with pytest.raises(StalledError, match="did not end"):
                await threads.run(f"piece {i}", gate.wait)
        with pytest.raises(StalledError, match="one more is not tried now"):
            await threads.run("one more", gate.wait)
    finally:
        gate.set()
    assert await again(threads, "one more") == 3


async def test_a_loop_that_has_ended_is_not_told() -> None:
    gate = threading.Event()
    threads = ThreadPerTask(10)
    task = asyncio.create_task(threads.run("a piece", gate.wait))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await again(threads, "a piece") == 3
