"""Which build this is: the package's version, and the git revision that the image was made from."""

import os
from dataclasses import dataclass

from blora import __version__

__all__ = ["Build"]


@dataclass(frozen=True, slots=True)
class Build:
    """Identity of the running code."""

    version: str
    revision: str

    @classmethod
    def current(cls) -> "Build":
        """This process's build; BLORA_REVISION is set when the image is built."""
        return cls(version=__version__, revision=os.environ.get("BLORA_REVISION", "unknown"))
