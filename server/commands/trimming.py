"""Return of freed memory to the operating system.

glibc keeps what is freed, and passes of every size fragment it, so that the resident memory of a server under mixed
load would grow for hours though nothing is leaked.
"""

import asyncio
import ctypes

__all__ = ["trim_memory"]

EVERY_S = 30.0


async def trim_memory(every_s: float = EVERY_S) -> None:
    """Return freed pages to the operating system at intervals, until cancelled; does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.to_thread(trim, 0)
        await asyncio.sleep(every_s)
