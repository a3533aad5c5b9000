"""Keeps what is served in step with a folder: replicas that see the same one come to serve the same adapters."""

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path

from blora.server.errors import ServerError
from blora.server.registry import Registry
from blora.server.shelf import Shelf

__all__ = ["Watch"]

logger = logging.getLogger(__name__)

# By its times and sizes a changed adapter is known without reading it.
Signature = frozenset[tuple[str, int, int]]
UNREADABLE: Signature = frozenset([("", 0, 0)])


class Watch:
    """Serves each adapter directly below a folder under its folder's name.

    One that comes is loaded, one that goes is unloaded, and one that changes is replaced once the new one has loaded.
    What does not load is told once, and tried again when it changes. Adapters from elsewhere are left alone.

    Args:
        root: the folder; what begins with a dot is being written and not looked at.
        shelf: that loads and unloads.
        registry: that serves.
    """

    def __init__(self, root: Path, shelf: Shelf, registry: Registry) -> None:
        self._root = root
        self._shelf = shelf
        self._registry = registry
        self._seen: dict[str, Signature] = {}
        self._kept: set[str] = set()  # names that are served from here

    async def run(self, every_s: float) -> None:
        """Looks again and again."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Brings what is served in step with what is there now."""
        try:
            found = await asyncio.to_thread(_signatures, self._root)
        except OSError:
            logger.exception("The adapters stay as they are, for %s cannot be read", self._root)
            return
        for name in found.keys() & self._seen.keys():
            if found[name] == UNREADABLE:
                found[name] = self._seen[name]  # for the moment, as on a shared file system
        for name in self._seen.keys() - found.keys():
            del self._seen[name]
            if name in self._kept:
                self._kept.discard(name)
                await self._told(name, "unloaded", self._unload(name))
        for name, signature in found.items():
            if self._seen.get(name) != signature:
                self._seen[name] = signature
                if name in self._kept or self._registry.get(name) is None:
                    await self._told(name, "loaded", self._load(name))

    async def _load(self, name: str) -> None:
        await self._shelf.load(name, name, replace=True)
        self._kept.add(name)

    async def _unload(self, name: str) -> None:
        if self._registry.get(name) is not None:  # an admin may have been faster
            await self._shelf.unload(name)

    async def _told(self, name: str, done: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except ServerError as exc:
            logger.error("Adapter %s in %s is not %s: %s", name, self._root, done, exc)
        except Exception:  # of whatever kind: the others are to be looked at all the same
            logger.exception("Adapter %s in %s is not %s", name, self._root, done)
        else:
            logger.info("Adapter %s in %s is %s", name, self._root, done)


def _signatures(root: Path) -> dict[str, Signature]:
    folders = (folder for folder in sorted(root.iterdir()) if not folder.name.startswith("."))
    return {folder.name: _signature(folder) for folder in folders if folder.is_dir()}


def _signature(folder: Path) -> Signature:
    try:
        stats = ((file.name, file.lstat()) for file in folder.iterdir())
        return frozenset((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
    except OSError:
        return UNREADABLE
