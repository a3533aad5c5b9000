"""An `os.open` that fails on one file, as on a file system that is out of order."""

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["failing_open"]


def failing_open(ending: str, error: int) -> Callable[..., int]:
    """Return `os.open` but for files whose paths end so, which get the error of this number."""
    real = os.open

    def failing(path: Path | str, *args: int) -> int:
        if str(path).endswith(ending):
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *args)

    return failing
