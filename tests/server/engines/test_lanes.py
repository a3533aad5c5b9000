"""Threads for work beside parked work, which end with it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from blora.server.engines.lanes import Lanes


def beside() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("compute-beside")]


async def test_work_beside_parked_work_has_a_thread_that_ends_with_it() -> None:
    lanes, parked = Lanes(ThreadPoolExecutor(1, "first")), threading.Event()
    first = asyncio.create_task(lanes.run(parked.wait))
    await asyncio.sleep(0)
    names = [await lanes.run(lambda: threading.current_thread().name) for _ in range(3)]
    assert all(name.startswith("compute-beside") for name in names)
    async with asyncio.timeout(10):
        while beside():
            await asyncio.sleep(0.01)
    parked.set()
    assert await first
    assert (await lanes.run(lambda: threading.current_thread().name)).startswith("first")
    lanes.close()


async def test_work_that_fails_takes_no_thread_for_good() -> None:
    lanes = Lanes(ThreadPoolExecutor(1, "first"))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await lanes.run(lambda: 1 // 0)
    assert (await lanes.run(lambda: threading.current_thread().name)).startswith("first")
    lanes.close()
