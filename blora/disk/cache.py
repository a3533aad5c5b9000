"""The cache folder: converted base models, and adapters from the hub."""

import os
from pathlib import Path

from blora.errors import ConfigError

__all__ = ["cache_folder"]


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
