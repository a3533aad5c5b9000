"""How much memory a piece of work took at its peak, which neither Python's nor torch's own counters tell alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROC = Path("/proc/self")


@dataclass
class Peak:
    """MiB above what the process held before; set once the work is done."""

    mib: float = 0.0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures the resident memory that the work inside takes at most; skips the test where the system cannot tell."""
    peak, before = Peak(), _read("VmRSS")
    try:
        (PROC / "clear_refs").write_text("5")  # the peak is that of now
    except OSError:
        pytest.skip("needs a Linux whose /proc/self/clear_refs can be written, to measure the peak of resident memory")
    try:
        yield peak
    finally:
        peak.mib = _read("VmHWM") - before


def _read(name: str) -> float:
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
