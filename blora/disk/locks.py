"""Locks of files and folders between processes; one ends with the process that holds it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blora.errors import AdapterError

__all__ = ["lock", "locked"]


def lock(descriptor: int, *, wait: bool) -> None:
    """Hold the only lock on an open file or folder until it is closed.

    Args:
        descriptor: of the open file or folder.
        wait: whether to wait for another process to let go of the lock.

    Raises:
        BlockingIOError: if another process holds the lock, and this one is not to wait.
        OSError: if the file system or the operating system has no such locks, as Windows.
    """
    try:
        import fcntl
    except ImportError as exc:
        raise OSError(errno.ENOLCK, "the system has no locks") from exc
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(folder: Path, *, required: bool = True) -> Iterator[None]:
    """Hold the only lock on a folder, so that a file in it is read, changed and written without others in between.

    The lock is on the folder itself, not on a file in it, so that nothing is left behind.

    Args:
        folder: the folder.
        required: whether a file system without locks is an error; if not, there is no lock on one.

    Raises:
        AdapterError: if the file system has no locks, and one is required.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _wait(descriptor, folder, required=required)
        while not os.path.samestat(os.fstat(descriptor), os.stat(folder)):  # another folder has taken its place
            os.close(descriptor)
            descriptor = os.open(folder, os.O_RDONLY)
            _wait(descriptor, folder, required=required)
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, folder: Path, *, required: bool) -> None:
    try:
        lock(descriptor, wait=True)
    except OSError as exc:
        if required:
            raise AdapterError(
                f"got folder {folder}, which cannot be locked ({exc.strerror}), expected one on a file system with "
                "locks: copy the adapter to a local disk and calibrate it there"
            ) from exc
