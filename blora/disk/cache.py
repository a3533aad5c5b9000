"""The cache folder: converted base models, and adapters from the hub."""

import os
from pathlib import Path

from blora.errors import AdapterError, ConfigError

__all__ = ["ORIGIN_FILE", "cache_folder", "check_own"]

# Where an adapter of the hub is from; only in its folder in the cache.
ORIGIN_FILE = "origin.json"


def cache_folder() -> Path:
    """Return the cache folder, BLORA_CACHE_DIR or ~/.cache/blora, and create it if it is missing.

    Raises:
        ConfigError: if the folder cannot be created.
    """
    cache = Path(os.environ.get("BLORA_CACHE_DIR") or os.path.expanduser("~/.cache/blora"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(
            f"got cache folder {cache}, which cannot be created ({exc.strerror}), expected a folder that can be "
            "written; set BLORA_CACHE_DIR"
        ) from exc
    return cache


def check_own(folder: Path) -> None:
    """Raise an error if a folder is that of a cached adapter, which must stay as it was downloaded.

    Raises:
        AdapterError: if the folder is in the cache.
    """
    if (folder / ORIGIN_FILE).exists():
        raise AdapterError(
            f"got {folder} to change, an adapter of the hub in the cache, expected a folder of your own: copy it with "
            f"`blora pull NAME FOLDER`; if it is a copy already, remove its {ORIGIN_FILE}"
        )
