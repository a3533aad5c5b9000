"""Presence of an adapter in a folder, finished or half rewritten, and how to finish one that is half rewritten."""

from pathlib import Path

from blora.disk.atomic import HIDDEN
from blora.disk.files import is_present

__all__ = ["ADVICE", "CONFIG_FILE", "UNFINISHED_FILE", "how_to_finish", "is_adapter"]

CONFIG_FILE = "bayesian_config.json"
# The old config while a folder is being rewritten. A folder in which a crash left this file may be written again.
UNFINISHED_FILE = f"{CONFIG_FILE}.old"
# Advice for error messages about a file that cannot be used.
ADVICE = "restore it or train again"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter rather than a plain LoRA or anything else, even one half rewritten.

    Raises:
        UnreadableError: if nobody can tell at the moment.
    """
    # While a folder is written, the config has the second name, and between two looks it may have come back.
    return any(is_present(folder / name) for name in (CONFIG_FILE, UNFINISHED_FILE, CONFIG_FILE))


def how_to_finish(folder: Path) -> str:
    """Return the message on an adapter that was half rewritten: what was got and expected, and how to finish."""
    got = (
        f"got adapter {folder} without {CONFIG_FILE}, because a write of it was interrupted or is still running, "
        "expected one that is finished; if no process is writing it, "
    )
    again = "train again into the same folder"
    if (rest := _hidden_rest(folder)) is None:
        return f"{got}{again}, because no folder {HIDDEN}{folder.name}-* with the new files was found in it"
    return (
        f"{got}finish it: move the files of {rest} into {folder}, {CONFIG_FILE} last, and remove {UNFINISHED_FILE}, "
        f"which has the settings of the earlier files; or {again}"
    )


def _hidden_rest(folder: Path) -> Path | None:
    """Return the hidden folder with the files that an interrupted write has not moved; None without one.

    Of several, this is the one that was changed last: an earlier write's files were replaced by a later one's.
    """
    try:
        hidden = [path for path in folder.iterdir() if path.name.rpartition("-")[0] == f"{HIDDEN}{folder.name}"]
        complete = [path for path in hidden if (path / CONFIG_FILE).is_file()]  # written last, and moved last
        return max(complete, key=lambda path: path.stat().st_mtime_ns, default=None)
    except OSError:  # a folder that cannot be read, or has just been removed
        return None
