"""Atomic writes of files and folders: after a crash at any time the result is complete or absent."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from blora.disk.locks import locked

__all__ = ["HIDDEN", "naming", "new_folder", "remove_abandoned", "write_file"]

# How the names of hidden files and folders begin.
HIDDEN = ".partial-"
# Age at which a hidden folder counts as abandoned; no conversion or download takes a day.
STALE_S = 24 * 3600


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a path in the errors of a disk that do not, such as those of an open file."""
    try:
        yield
    except OSError as exc:
        if exc.errno is not None and exc.filename is None:
            exc.filename = str(path)
        raise


def _readable(descriptor: int) -> None:
    os.fchmod(descriptor, 0o644)  # temporary files are private; a server may run as another user


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems flush no folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(file: Path, text: str, *, prepare: Callable[[int], None] = _readable) -> None:
    """Replace a file's text atomically: readers find the old text or the new one, also after a crash.

    Args:
        file: the file to write, in a folder that exists.
        text: the new contents.
        prepare: sets owner and mode of the open file, given its descriptor; by default everybody may read the file.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f"{HIDDEN}{file.name}-")
    partial = Path(name)
    try:
        with naming(file), open(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            prepare(descriptor)
            out.flush()
            os.fsync(descriptor)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path, *, place: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """Yield an empty hidden folder, which becomes the target folder when the context ends without an error.

    The hidden folder is beside the target, or in one that exists and has a `place`: the target may be a mount, which is
    a file system of its own, or its parent may be closed to this user.

    Args:
        folder: the target folder; missing parents are created.
        place: moves the finished folder to the target, while no other does, and handles a target that exists and
            failures of the move; by default the folder is renamed.
    """
    if place is not None and folder.is_dir():
        around = folder
    else:
        around = folder.parent
        around.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=around, prefix=f"{HIDDEN}{folder.name}-"))
    try:
        with naming(folder):
            yield partial
        for written in (*partial.rglob("*"), partial):
            written.chmod(0o755 if written.is_dir() else 0o644)
            _flush(written)
        if place is None:
            partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if place is not None:
        with ExitStack() as locks:
            for held in dict.fromkeys((around, *([folder] if folder.is_dir() else []))):
                locks.enter_context(locked(held, required=False))
            place(partial, folder)
    _flush(around)


def remove_abandoned(parent: Path) -> None:
    """Remove the hidden folders of `new_folder` that processes left behind when they were killed, a day later."""
    for partial in parent.glob(f"{HIDDEN}*"):
        with suppress(FileNotFoundError):  # another process has just completed it
            if partial.stat().st_mtime < time.time() - STALE_S:
                shutil.rmtree(partial, ignore_errors=True)
