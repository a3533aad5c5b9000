"""The work folder of a training run: the run it belongs to, and the checkpoint to resume from."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blora.disk.atomic import write_file
from blora.disk.locks import lock
from blora.errors import ConfigError

__all__ = ["STATE_FILE", "check_apart", "claimed", "last_complete"]

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"  # the last file of a checkpoint that the Trainer writes
BEST = "best_model_checkpoint"  # its entry that names a folder


def check_apart(work_dir: Path, output: Path) -> None:
    """Check that neither the work folder nor the adapter's folder contains the other.

    Raises:
        ConfigError: if one does: a run writes the adapter into a folder of its own, and removes the work folder.
    """
    work, out = work_dir.resolve(), output.resolve()
    if work.is_relative_to(out) or out.is_relative_to(work):
        raise ConfigError(
            f"got work folder {work_dir} and output {output}, of which one contains the other, expected separate "
            "folders: name another --work-dir, or leave it out"
        )


@contextmanager
def claimed(work_dir: Path, run: dict[str, Any], *, resume: bool) -> Iterator[Path | None]:
    """Hold the work folder for a run, so that no other run writes into it or resumes from its checkpoints.

    When the context ends without an error, what the run wrote is removed, and the folder if nothing else is in it.
    After an error it stays, to resume from.

    Args:
        work_dir: the folder, created if it does not exist.
        run: everything that the run depends on, as JSON.
        resume: whether to continue the same run if it is unfinished.

    Yields:
        The checkpoint to resume from, None to start from the beginning.

    Raises:
        ConfigError: if a run is using the folder, or if the folder belongs to another run, holds other files, or holds
            this run without `resume`.
    """
    if work_dir.exists() and not work_dir.is_dir():
        raise _of_others(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work_dir, os.O_RDONLY)
    try:
        _lock(descriptor, work_dir)
        yield _claim(work_dir, run, resume=resume)
        _release(work_dir)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, work_dir: Path) -> None:
    try:
        lock(descriptor, wait=False)
    except BlockingIOError as exc:
        raise ConfigError(
            f"got work folder {work_dir}, which another run is using, expected one run at a time: wait until that run "
            "has ended, or name another --work-dir"
        ) from exc
    except OSError:  # no locks here: whoever starts two runs at once must take care
        return


def _claim(work_dir: Path, run: dict[str, Any], *, resume: bool) -> Path | None:
    file = work_dir / RUN_FILE
    text = json.dumps(run, sort_keys=True)
    if file.is_file():
        if file.read_text() != text:
            raise ConfigError(
                f"got work folder {work_dir} of a run with other settings, expected a new folder; remove it"
            )
        if not resume:
            raise ConfigError(
                f"got work folder {work_dir} of an unfinished run; pass --resume to continue it, or remove the folder"
            )
        return last_complete(work_dir)
    if any(work_dir.iterdir()):
        raise _of_others(work_dir)
    write_file(file, text)  # atomic: a partial file would look like another run's
    return None


def _of_others(work_dir: Path) -> ConfigError:
    return ConfigError(f"got work folder {work_dir}, which holds other files, expected a new or empty folder")


def last_complete(work_dir: Path) -> Path | None:
    """Return the newest complete checkpoint, None if there is none; a killed run may leave an incomplete one.

    The Trainer records the path of the best checkpoint, and goes on without one if the path leads nowhere, as after the
    folder was moved, or from another working directory. So the path is set to where the folder is now.
    """
    for path in reversed(_checkpoints(work_dir)):
        try:
            state = json.loads((path / STATE_FILE).read_text())
        except (OSError, ValueError):
            continue
        if best := state.get(BEST):
            write_file(path / STATE_FILE, json.dumps(state | {BEST: str(work_dir / Path(best).name)}, indent=2))
        return path
    return None


def _release(work_dir: Path) -> None:
    for folder in _checkpoints(work_dir):
        shutil.rmtree(folder)
    (work_dir / RUN_FILE).unlink()
    with suppress(OSError):  # other files are the user's
        work_dir.rmdir()


def _checkpoints(work_dir: Path) -> list[Path]:
    """Return the folders of checkpoints, complete or not, the newest last."""
    found = {
        int(match.group(1)): path
        for path in work_dir.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    return [found[step] for step in sorted(found)]
