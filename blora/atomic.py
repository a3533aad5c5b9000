"""Files and folders that appear whole or not at all, whenever the process that writes them ends."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["new_folder", "write_file"]


def _readable(descriptor: int) -> None:
    os.fchmod(descriptor, 0o644)  # temporary files are their owner's alone; whoever serves this one is somebody else


def write_file(file: Path, text: str, *, prepare: Callable[[int], None] = _readable) -> None:
    """Put text in the place of a file: readers find the old text or the new one, also after a crash.

    Args:
        file: the place, in a folder that exists.
        text: the new contents.
        prepare: gives the open file, by its descriptor, owner and mode; everybody may read it by default.
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
    """Yield an empty folder, hidden beside a place that it takes once its files are written.

    Args:
        folder: the place; its parents are made.
        place: moves the files there where the place may be taken, and decides what remains if that fails; by default
            the folder is renamed.
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
