"""Synchronisation of the served adapters with a folder, so that replicas with one folder serve the same adapters."""

import asyncio
import logging
import os
import stat
import time
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from blora.errors import BloraError
from blora.server.adapters.loader import MOST_ENTRIES, Loader
from blora.server.adapters.registry import Registry
from blora.server.errors import ServerError
from blora.server.scheduling.thread_per_task import StalledError, ThreadPerTask

__all__ = ["FolderSync"]

logger = logging.getLogger(__name__)

# Names, times of modification and of change (ns) and sizes (bytes) of an adapter's files, by which a change shows
# without reading the files. A change of permissions alters the time of change alone. What a link leads to may change
# while the link stays, so that both count.
Signature = frozenset[tuple[str, int, int, int]]
# Signature of a folder that cannot be read at the moment, for example on a shared file system.
UNREADABLE: Signature = frozenset([("", 0, 0, 0)])
# Folders that are read at the same time, so that a stalled folder does not delay the others.
AT_ONCE = 8
# Name in log lines of changes made here; names of keys contain no space.
BY = "folder watch"
# Codes of refusals whose reason may pass while the folder stays as it is.
PASSING = ("adapter_stalled", "adapter_unavailable", "too_many_adapters")


class _Retry(NamedTuple):
    """The time of the next try to load an adapter, and the type of the error because of which there is one."""

    at: float
    error: type[Exception]


class FolderSync:
    """Poller that serves each adapter directly below a folder under the name of the adapter's folder.

    New adapters are loaded, removed ones unloaded, and changed ones replaced once the new version has loaded. An
    adapter that fails to load is logged and tried again when it changes, or after a while if the reason may pass, such
    as a timeout, a file that cannot be read, an engine without memory or too many adapters. All adapters stay while the
    folder cannot be read or has lost all its folders, as when its volume is unmounted. Adapters with other contents
    from elsewhere stay as they are, until an admin loads the folder itself under its own name.

    Args:
        root: the folder; entries whose names begin with a dot are ignored, as they are being written.
        loader: loads and unloads adapters.
        registry: the served adapters.
        timeout_s: seconds that reading a folder's entries may take, and after which a failed load is tried again.
    """

    def __init__(self, root: Path, loader: Loader, registry: Registry, *, timeout_s: float) -> None:
        self.looked = asyncio.Event()
        """Set once every folder found by the first poll has been tried."""
        self._root = root
        self._loader = loader
        self._registry = registry
        self._timeout_s = timeout_s
        self._threads = ThreadPerTask(timeout_s)
        self._looking = asyncio.Semaphore(AT_ONCE)
        self._stays_because: int | None = None
        self._seen: dict[str, Signature] = {}
        self._retries: dict[str, _Retry] = {}  # by name
        self._silent: set[str] = set()  # names whose folders timed out

    async def run(self, every_s: float) -> None:
        """Poll the folder until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # a single failed look must not end the watch
                logger.exception("The adapters in %s could not be compared with those served", self._root)
            self.looked.set()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """Load, replace and unload adapters to match the folder's present contents."""
        try:
            all_folders = await self._threads.run("Reading the adapter root", partial(_folders, self._root))
        except (OSError, BloraError) as exc:
            self._stay(logging.ERROR, f"cannot be read: {exc}")
            return
        if not all_folders and any(map(self._serves, self._seen)):
            self._stay(
                logging.WARNING,
                "has no folders any more, as if its volume were not mounted: mount it, or unload them with DELETE "
                "/v1/adapters/NAME",
            )
            return
        self._stays_because = None
        folders = [name for name in all_folders if not name.startswith(".")]
        signatures = await asyncio.gather(*map(self._signature, folders))
        found = {
            name: signature
            for name, signature in zip(folders, signatures, strict=True)
            # A known folder that cannot be read at the moment counts as unchanged, and its adapter is not tried again.
            if signature is not None and not (signature == UNREADABLE and name in self._seen)
        }
        for name in self._seen.keys() - set(folders):
            del self._seen[name]
            self._retries.pop(name, None)
            if self._serves(name):
                await self._unload(name)
        due = [name for name, signature in found.items() if self._is_due(name, signature)]
        self._seen.update(found)
        await asyncio.gather(*map(self._load, due))

    def _stay(self, level: int, why: str) -> None:
        """Log that the adapters stay as they are, unless the last poll has ended in the same way."""
        if level != self._stays_because:
            logger.log(level, "The adapters stay as they are, because %s %s", self._root, why)
        self._stays_because = level

    async def _signature(self, name: str) -> Signature | None:
        """Return the signature of an adapter's folder, or None if reading it timed out."""
        try:
            async with self._looking:
                found = await self._threads.run(
                    f"Reading the folder of adapter {name!r}", partial(_signature, self._root / name)
                )
        except StalledError as exc:
            if name not in self._silent:
                self._silent.add(name)
                logger.error("Adapter %r in %s stays as it is: %s", name, self._root, exc)
            return None
        self._silent.discard(name)
        return found

    def _is_due(self, name: str, signature: Signature) -> bool:
        retry, seen = self._retries.get(name), self._seen.get(name)
        if retry is not None and time.monotonic() >= retry.at and self._loader.has_room(name):
            return True
        # One that was served before its folder was first read, as by --adapters, is followed if its contents are equal.
        ours = self._serves(name) or self._registry.get(name) is None or seen in (None, UNREADABLE)
        return ours and seen != signature

    def _serves(self, name: str) -> bool:
        """Return whether the adapter of a name is the one that was loaded from its folder."""
        return self._loader.serves(name, name)

    async def _load(self, name: str) -> None:
        before = self._retries.pop(name, None)
        try:
            await self._loader.load(name, name, by=BY, follow=True)
        except ServerError as exc:  # the loader has logged it
            if exc.code in PASSING:
                self._try_again(name, exc)
        except Exception as exc:  # any other error must not keep the other adapters from being tried
            if before is None or before.error is not type(exc):
                logger.exception("Adapter %r in %s is not loaded", name, self._root)
            self._try_again(name, exc)

    def _try_again(self, name: str, error: Exception) -> None:
        self._retries[name] = _Retry(time.monotonic() + self._timeout_s, type(error))

    async def _unload(self, name: str) -> None:
        try:
            await self._loader.unload(name, by=BY)
        except Exception:
            logger.exception("Adapter %r in %s is not unloaded", name, self._root)


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in sorted(root.iterdir()) if _may_be_folder(entry)]


def _may_be_folder(entry: Path) -> bool:
    try:
        return stat.S_ISDIR(entry.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # perhaps a folder that cannot be read at the moment, of which `Path.is_dir` says False or raises
        return True


def _signature(folder: Path) -> Signature:
    try:
        stats = ((file.name, found) for file in islice(folder.iterdir(), MOST_ENTRIES) for found in _stats(file))
        return frozenset((name, found.st_mtime_ns, found.st_ctime_ns, found.st_size) for name, found in stats)
    except OSError:
        return UNREADABLE


def _stats(file: Path) -> list[os.stat_result]:
    """Return the state of a file, and for a link also the state of what it leads to, if there is anything."""
    found = [file.lstat()]
    if stat.S_ISLNK(found[0].st_mode):
        with suppress(OSError):
            found.append(file.stat())
    return found
