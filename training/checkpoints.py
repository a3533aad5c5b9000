"""The work folder of a training run: whose it is, and where it can go on."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from blora.atomic import write_file
from blora.errors import ConfigError

__all__ = ["claim", "last_complete", "release"]

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"  # the last that the Trainer writes of a checkpoint


def claim(work_dir: Path, run: dict[str, Any], *, resume: bool) -> Path | None:
    """Takes the work folder for a run, so that no run goes on from the checkpoints of another.

    Args:
        work_dir: the folder, made if need be.
        run: everything that the run depends on, as JSON.
        resume: go on with the same run if it has begun.

    Returns:
        The checkpoint to go on from, None to begin.

    Raises:
        ConfigError: if the folder is another run's, or this one's without `resume`.
    """
    file = work_dir / RUN_FILE
    text = json.dumps(run, sort_keys=True)
    if file.is_file():
        if file.read_text() != text:
            raise ConfigError(f"got work folder {work_dir} of a run with other settings, expected a new one; remove it")
        if not resume:
            raise ConfigError(f"got work folder {work_dir} of an unfinished run; pass --resume to go on, or remove it")
        return last_complete(work_dir)
    if work_dir.exists() and (not work_dir.is_dir() or any(work_dir.iterdir())):
        raise ConfigError(f"got work folder {work_dir}, which holds other things; expected a new or an empty folder")
    work_dir.mkdir(parents=True, exist_ok=True)
    write_file(file, text)  # half a file would be taken for another run's
    return None


def last_complete(work_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a kill may have left a later one in pieces."""
    found = {
        int(match.group(1)): path
        for path in work_dir.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for _, path in sorted(found.items(), reverse=True):
        try:
            json.loads((path / STATE_FILE).read_text())
        except (OSError, ValueError):
            continue
        return path
    return None


def release(work_dir: Path) -> None:
    """Removes the work folder of a run that is done."""
    shutil.rmtree(work_dir)
