"""Freed memory goes back to the operating system."""

import asyncio
import ctypes
from types import SimpleNamespace

import psutil
import pytest

from blora.server.commands.trimming import trim_memory


async def test_memory_is_trimmed_at_intervals_until_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=calls.append))
    task = asyncio.create_task(trim_memory(0.01))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(calls) >= 2
    assert set(calls) == {0}


async def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    await asyncio.wait_for(trim_memory(0.01), 1)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
async def test_small_blocks_between_kept_ones_leave_the_process() -> None:
    process = psutil.Process()
    blocks = [bytes(64 * 1024) for _ in range(4000)]  # below glibc's threshold for mappings of their own
    kept = blocks[::40]
    full = process.memory_info().rss
    del blocks
    task = asyncio.create_task(trim_memory(0.01))
    await asyncio.sleep(0.5)
    task.cancel()
    assert len(kept) == 100
    assert process.memory_info().rss < full - 100 * 2**20
