"""Keeps what is served in step with a folder: replicas that see the same one come to serve the same adapters."""

import asyncio
import logging
import time
from functools import partial
from itertools import islice
from pathlib import Path

from blora.errors import BloraError
from blora.server.adapters.loader import MOST_ENTRIES, Loader
from blora.server.adapters.registry import Registry
from blora.server.errors import DeadlineExceededError, ServerError
from blora.server.scheduling.thread_per_task import StalledError, ThreadPerTask

__all__ = ["FolderSync"]

logger = logging.getLogger(__name__)

# By its times and sizes a changed adapter is known without reading it.
Signature = frozenset[tuple[str, int, int]]
# Of a folder that cannot be looked into for the moment, as on a shared file system.
UNREADABLE: Signature = frozenset([("", 0, 0)])
# Folders that are looked into at the same time: one that stalls does not hold up the others.
AT_ONCE = 8
# How the log calls who changes adapters from here; no key has a name with a space.
BY = "folder watch"


class FolderSync:
    """Serves each adapter directly below a folder under its folder's name.

    One that comes is loaded, one that goes is unloaded, and one that changes is replaced once the new one has loaded.
    What does not load is told once, and tried again when it changes, or after a while if it could not be read in time.
    Adapters from elsewhere are left alone.

    Args:
        root: the folder; what begins with a dot is being written and not looked at.
        loader: that loads and unloads.
        registry: that serves.
        timeout_s: how long a look into a folder may take, and when one that took longer is tried again.
    """

    def __init__(self, root: Path, loader: Loader, registry: Registry, *, timeout_s: float) -> None:
        self.looked = asyncio.Event()
        """Set once each folder has been tried that was there at the first look."""
        self._root = root
        self._loader = loader
        self._registry = registry
        self._timeout_s = timeout_s
        self._threads = ThreadPerTask(timeout_s)
        self._looking = asyncio.Semaphore(AT_ONCE)
        self._readable = True
        self._seen: dict[str, Signature] = {}
        self._kept: set[str] = set()  # names that are served from here
        self._stalled: dict[str, float] = {}  # names, and when they are tried again
        self._silent: set[str] = set()  # names whose folders do not answer

    async def run(self, every_s: float) -> None:
        """Looks again and again."""
        while True:
            await self.look()
            self.looked.set()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """Brings what is served in step with what is there now."""
        try:
            folders = await self._threads.run("The look at the adapter root", partial(_folders, self._root))
        except (OSError, BloraError) as exc:
            if self._readable:
                logger.error("The adapters stay as they are, for %s cannot be read: %s", self._root, exc)
            self._readable = False
            return
        self._readable = True
        signatures = await asyncio.gather(*map(self._signature, folders))
        found = {name: signature for name, signature in zip(folders, signatures, strict=True) if signature is not None}
        for name in found.keys() & self._seen.keys():
            if found[name] == UNREADABLE:
                found[name] = self._seen[name]
        for name in self._seen.keys() - set(folders):
            del self._seen[name]
            self._stalled.pop(name, None)
            if name in self._kept:
                self._kept.discard(name)
                await self._unload(name)
        due = [name for name, signature in found.items() if self._is_due(name, signature)]
        self._seen.update(found)
        await asyncio.gather(*map(self._load, due))

    async def _signature(self, name: str) -> Signature | None:
        """What tells a changed folder, None where it does not answer."""
        try:
            async with self._looking:
                found = await self._threads.run(f"The look at adapter {name!r}", partial(_signature, self._root / name))
        except StalledError as exc:
            if name not in self._silent:
                self._silent.add(name)
                logger.error("Adapter %r in %s stays as it is: %s", name, self._root, exc)
            return None
        self._silent.discard(name)
        return found

    def _is_due(self, name: str, signature: Signature) -> bool:
        changed = self._seen.get(name) != signature
        again = name in self._stalled and time.monotonic() >= self._stalled[name]
        return (changed or again) and (name in self._kept or self._registry.get(name) is None)

    async def _load(self, name: str) -> None:
        self._stalled.pop(name, None)
        try:
            await self._loader.load(name, name, by=BY, replace=True)
        except DeadlineExceededError:
            self._stalled[name] = time.monotonic() + self._timeout_s
        except ServerError:
            pass  # the loader has told
        except Exception:  # of whatever kind: the others are to be looked at all the same
            logger.exception("Adapter %r in %s is not loaded", name, self._root)
        else:
            self._kept.add(name)

    async def _unload(self, name: str) -> None:
        if self._registry.get(name) is not None:  # an admin may have been faster
            try:
                await self._loader.unload(name, by=BY)
            except Exception:
                logger.exception("Adapter %r in %s is not unloaded", name, self._root)


def _folders(root: Path) -> list[str]:
    return [folder.name for folder in sorted(root.iterdir()) if not folder.name.startswith(".") and folder.is_dir()]


def _signature(folder: Path) -> Signature:
    try:
        stats = ((file.name, file.lstat()) for file in islice(folder.iterdir(), MOST_ENTRIES))
        return frozenset((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
    except OSError:
        return UNREADABLE
