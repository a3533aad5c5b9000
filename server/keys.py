"""API keys, whose hashes are in a key file that may change while the server runs.

A line of the file is `NAME SCOPE sha256:HEX`, followed by `adapters=NAME,NAME` if the key is bound to some adapters;
`blora key` adds a line. While an owner's key is replaced, the owner has two lines, which differ in the hash alone. Keys
are long and random, so that a plain hash reveals nothing about them.
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
from blora.server.names import NAME, check_name

__all__ = ["KEY", "Key", "Keys", "Scope", "allowed_adapters", "client_name", "line_of", "new_key", "read_keys"]

logger = logging.getLogger(__name__)

Scope = Literal["predict", "admin"]
# Largest key file, about ten thousand keys.
_MOST_BYTES = 2**20
_LINE = re.compile(
    rf"(?P<name>{NAME})\s+(?P<scope>\w+)\s+sha256:(?P<digest>[0-9a-f]{{64}})"
    rf"(?:\s+adapters=(?P<adapters>{NAME}(?:,{NAME})*))?"
)


@dataclass(frozen=True, slots=True)
class Key:
    """Owner and permissions of a key.

    Attributes:
        name: name of the key's owner.
        scope: `predict`, or `admin`, which may also load and unload adapters.
        adapters: names of the adapters that the key may use and see; None for all. Always None for scope admin.
    """

    name: str
    scope: Scope
    adapters: frozenset[str] | None = None


KEY: ContextVar[Key | None] = ContextVar("blora_key", default=None)
"""Current request's key."""


def client_name() -> str | None:
    """Return the name of the current request's key, or None without a key."""
    key = KEY.get()
    return key.name if key is not None else None


def allowed_adapters() -> frozenset[str] | None:
    """Return the names of the adapters that the current request's key may use, or None for all."""
    key = KEY.get()
    return key.adapters if key is not None else None


class _UnreadableError(ConfigError):
    """A key file that is missing, or that cannot be read at the moment."""


# Times of modification and of change (ns), inode and size (bytes) of a key file; None while it cannot be found.
_Stamp = tuple[int, int, int, int] | None


class Keys:
    """Keys of a key file, read again whenever the file changes, and with each request while it cannot be read.

    Args:
        file: the key file, one line for each key; empty lines and lines that begin with # are ignored.

    Raises:
        ConfigError: if the file cannot be read, has no key, or is otherwise invalid.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = _stamp(file)
        self._keys = _read(file)
        self._told: tuple[_Stamp, str] | None = None  # the failure told last; None after a success

    def find(self, presented: str) -> Key | None:
        """Return the presented key, or None if it is unknown, in a time that does not depend on the key's text."""
        self._refresh()
        digest = hashlib.sha256(presented.encode()).hexdigest()
        found = None
        for known, key in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def _refresh(self) -> None:
        """Read a changed file; keep the keys if the file is missing or invalid, and drop all keys if it is empty."""
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = _read(self._file, allow_none=True)
        except _UnreadableError as exc:
            self._stamp = None  # the reason may pass while the file stays as it is, so the next request reads again
            self._tell(stamp, exc)
        except ConfigError as exc:
            self._tell(stamp, exc)
        else:
            self._told = None

    def _tell(self, stamp: _Stamp, error: ConfigError) -> None:
        """Log a failure, unless it is the failure told last."""
        told = (stamp, str(error))
        if told != self._told:
            logger.error("Keys stay as they were: %s", error)
        self._told = told


def new_key() -> str:
    """Return a new key of 256 random bits."""
    return f"blora_{secrets.token_urlsafe(32)}"


def line_of(name: str, scope: Scope, key: str, adapters: Iterable[str] = ()) -> str:
    """Return the key file's line for a key.

    Args:
        name: name of the key's owner.
        scope: scope of the key.
        key: the key, whose hash goes into the line.
        adapters: names of the adapters that the key is bound to; none for all adapters.

    Raises:
        ConfigError: if a name is invalid, or a key of scope admin is bound to adapters.
    """
    adapters = tuple(adapters)
    for kind, given in (("key", name), *(("adapter", adapter) for adapter in adapters)):
        check_name(kind, given)
    if scope == "admin" and adapters:
        raise ConfigError(
            f"Key {name!r} cannot be both an admin's and bound to adapters: an admin's key may use all of them."
        )
    bound = f" adapters={','.join(adapters)}" if adapters else ""
    return f"{name} {scope} sha256:{hashlib.sha256(key.encode()).hexdigest()}{bound}"


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _text(file: Path) -> str:
    """Return a regular file's text. Refuses pipes and large files, because the event loop reads it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not regular, too large or no UTF-8.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        content = opened.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    return content.decode()


def _read(file: Path, *, allow_none: bool = False) -> dict[str, Key]:
    try:
        text = _text(file)
    except OSError as exc:
        raise _UnreadableError(f"Key file {file} cannot be read: {exc}") from exc
    except ValueError as exc:
        raise ConfigError(f"Key file {file} cannot be read: {exc}") from exc
    keys = read_keys(text, file)
    if not keys and not allow_none:
        raise ConfigError(f"Key file {file} holds no key: make one with `blora key`")
    return keys


def read_keys(text: str, file: Path) -> dict[str, Key]:
    """Return the keys of a key file by their hashes.

    Args:
        text: the file's text.
        file: the file's path, for messages.

    Raises:
        ConfigError: if a line is not a key, a key occurs twice, or keys of one name differ in scope or adapters.
    """
    keys: dict[str, Key] = {}
    owners: dict[str, Key] = {}
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
        if found["digest"] in keys:
            raise ConfigError(f"Key {found['name']!r} is in {file} twice: remove one of the lines")
        adapters = frozenset(found["adapters"].split(",")) if bound else None
        key = Key(found["name"], cast(Scope, found["scope"]), adapters)
        if owners.setdefault(key.name, key) != key:
            raise ConfigError(
                f"got keys named {key.name!r} in {file} with different scopes or adapters, expected all keys of one "
                "name to have the same: correct one of the lines, or change its name"
            )
        keys[found["digest"]] = key
    return keys
