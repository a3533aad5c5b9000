"""Atomic writes of files and folders: after a crash at any time the result is complete or absent."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["new_folder", "remove_abandoned", "write_file"]

# Age at which a hidden folder counts as abandoned; no conversion or download takes a day.
STALE_S = 24 * 3600


def _readable(descriptor: int) -> None:
    os.fchmod(descriptor, 0o644)  # temporary files are private; a server may run as another user


def write_file(file: Path, text: str, *, prepare: Callable[[int], None] = _readable) -> None:
    """Replace a file's text atomically: readers find the old text or the new one, also after a crash.

    Args:
        file: the file to write, in a folder that exists.
        text: the new contents.
        prepare: sets owner and mode of the open file, given its descriptor; by default everybody may read the file.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".partial-{file.name}-")
    partial = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as out:
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

    Args:
        folder: the target folder, beside the hidden one; missing parents are created.
        place: moves the finished folder to the target, and handles a target that exists and failures of the move; by
            default the folder is renamed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".partial-{folder.name}-"))
    try:
        yield partial
        for written in (partial, *partial.rglob("*")):
            written.chmod(0o755 if written.is_dir() else 0o644)
        if place is None:
            partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if place is not None:
        place(partial, folder)


def remove_abandoned(parent: Path) -> None:
    """Remove the hidden folders of `new_folder` that processes left behind when they were killed, a day later."""
    for partial in parent.glob(".partial-*"):
        with suppress(FileNotFoundError):  # another process has just completed it
            if partial.stat().st_mtime < time.time() - STALE_S:
                shutil.rmtree(partial, ignore_errors=True)
