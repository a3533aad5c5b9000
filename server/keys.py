"""Who may ask: API keys, of which the server keeps hashes in a file that may change while it runs.

A line of the file is `NAME SCOPE sha256:HEX`, with `adapters=NAME,NAME` behind it where the key opens these alone;
`blora key` makes one. Keys are long and random, so that a plain hash tells nothing about them.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from blora.errors import ConfigError

__all__ = ["CLIENT", "KEY", "Key", "Keys", "Scope", "adapters_open", "line_of", "new_key", "read_keys"]

logger = logging.getLogger(__name__)

Scope = Literal["predict", "admin"]
# Of a key file: some ten thousand keys.
_MOST_BYTES = 2**20
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_LINE = re.compile(
    rf"(?P<name>{_NAME})\s+(?P<scope>\w+)\s+sha256:(?P<digest>[0-9a-f]{{64}})"
    rf"(?:\s+adapters=(?P<adapters>{_NAME}(?:,{_NAME})*))?"
)


@dataclass(frozen=True, slots=True)
class Key:
    """Whose key it is, and what it opens.

    Attributes:
        name: whose.
        scope: `admin` opens all that `predict` does, and the loading of adapters.
        adapters: that it may ask and see; None for all. A key of scope admin opens all.
    """

    name: str
    scope: Scope
    adapters: frozenset[str] | None = None


CLIENT: ContextVar[str | None] = ContextVar("blora_client", default=None)
"""The name of the key that a request came with."""
KEY: ContextVar[Key | None] = ContextVar("blora_key", default=None)
"""That key, with what it opens."""


def adapters_open() -> frozenset[str] | None:
    """Return the names of the adapters that the request's key opens, None for all."""
    key = KEY.get()
    return key.adapters if key is not None else None


class Keys:
    """The keys of a file, read again whenever it changes.

    Args:
        file: with a line for each key; empty lines and those that begin with # do not count.

    Raises:
        ConfigError: if it cannot be read, names a key twice, or has no key at all.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = _stamp(file)
        self._keys = _read(file)

    def find(self, presented: str) -> Key | None:
        """The key that was presented, None where there is none such; takes as long whichever it is."""
        self._refresh()
        digest = hashlib.sha256(presented.encode()).hexdigest()
        found = None
        for known, key in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def _refresh(self) -> None:
        """A file that is gone or garbled takes nobody's key away, and gives nobody one; an empty one takes all away."""
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read(self._file, allow_none=True)
        except ConfigError as exc:
            logger.error("Keys stay as they were: %s", exc)


def new_key() -> str:
    """A fresh key of 256 random bits."""
    return f"blora_{secrets.token_urlsafe(32)}"


def line_of(name: str, scope: Scope, key: str, adapters: Iterable[str] = ()) -> str:
    """The file's line for a key.

    Args:
        name: whose it is.
        scope: what it opens.
        key: the key itself, of which the line has a hash.
        adapters: that it opens alone; none for all.

    Raises:
        ConfigError: if a name is unusable, or a key of scope admin is to open some adapters alone.
    """
    adapters = tuple(adapters)
    for kind, given in (("key", name), *(("adapter", adapter) for adapter in adapters)):
        if not re.fullmatch(_NAME, given):
            raise ConfigError(
                f"got {kind} name {given!r}, expected up to 64 letters, digits and '._-', starting with a letter or "
                "digit"
            )
    if scope == "admin" and adapters:
        raise ConfigError(
            f"Key {name!r} cannot be an admin's and bound to some adapters: an admin's key opens all of them."
        )
    bound = f" adapters={','.join(adapters)}" if adapters else ""
    return f"{name} {scope} sha256:{hashlib.sha256(key.encode()).hexdigest()}{bound}"


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _text(file: Path) -> str:
    """What a regular file holds. The event loop reads it: nothing is waited for, and nothing is read without end."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        content = opened.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(f"more than {_MOST_BYTES} bytes")
    return content.decode()


def _read(file: Path, *, allow_none: bool = False) -> dict[str, Key]:
    try:
        text = _text(file)
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"Key file {file} cannot be read: {exc}") from exc
    keys = read_keys(text, file)
    if not keys and not allow_none:
        raise ConfigError(f"Key file {file} holds no key: make one with `blora key`")
    return keys


def read_keys(text: str, file: Path) -> dict[str, Key]:
    """Return the keys of a file by the hashes of what is presented.

    Args:
        text: what the file holds.
        file: its name, for messages.

    Raises:
        ConfigError: if a line is no key, or names one twice.
    """
    keys: dict[str, Key] = {}
    names: set[str] = set()
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        bound = found is not None and found["adapters"] is not None
        if found is None or found["scope"] not in get_args(Scope) or (bound and found["scope"] == "admin"):
            raise ConfigError(
                f"Line {number} of {file} is not a key, which is written NAME predict|admin sha256:HEX, followed by "
                "adapters=NAME,NAME if it is bound to some adapters: make keys with `blora key`"
            )
        if found["digest"] in keys or found["name"] in names:
            raise ConfigError(f"Key {found['name']!r} is in {file} twice: remove one of the lines")
        names.add(found["name"])
        adapters = frozenset(found["adapters"].split(",")) if bound else None
        keys[found["digest"]] = Key(found["name"], cast(Scope, found["scope"]), adapters)
    return keys
