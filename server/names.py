"""The rule for the names of keys and adapters."""

import re

from blora.errors import ConfigError

__all__ = ["NAME", "check_name", "name_from"]

_MOST_CHARACTERS = 64
NAME = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_MOST_CHARACTERS - 1}}}"
"""Regular expression of a name."""


def check_name(kind: str, name: str) -> None:
    """Raise an error if a text cannot be a name.

    Args:
        kind: whose name it would be, for the message.
        name: the text.

    Raises:
        ConfigError: if the name is invalid.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"got {kind} name {name!r}, expected up to {_MOST_CHARACTERS} letters, digits and '._-', starting with a "
            "letter or digit"
        )


def name_from(text: str) -> str:
    """Return a text without the characters that a name cannot have; empty if none is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:_MOST_CHARACTERS]
