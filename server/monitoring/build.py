"""Identity of the build: the package's version and the git revision of the image."""

import os
from dataclasses import dataclass

from blora import __version__

__all__ = ["Build"]


@dataclass(frozen=True, slots=True)
class Build:
    """Version and revision of the running code."""

    version: str
    revision: str

    @classmethod
    def current(cls) -> "Build":
        """Return the build of this process; BLORA_REVISION is set when the image is built."""
        return cls(version=__version__, revision=os.environ.get("BLORA_REVISION", "unknown"))
