"""Adapters that come and go while the server runs.

A request has taken its handle from the registry before, so that neither loading nor unloading disturbs it. Each change,
and each that is refused, leaves a line in the log that says who wanted it.
"""

import asyncio
import logging
from functools import partial
from itertools import islice
from pathlib import Path
from weakref import WeakValueDictionary

from blora.errors import BloraError, ConfigError
from blora.server.adapters.registry import Registry, check_name
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import Engine
from blora.server.errors import (
    AdapterConflictError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidRequestError,
    ServerError,
    TooLargeError,
)
from blora.server.monitoring.feedback import Feedback
from blora.server.monitoring.logs import write_down
from blora.server.monitoring.metrics import Metrics
from blora.server.scheduling.thread_per_task import StalledError, ThreadPerTask
from blora.server.settings import Settings

__all__ = ["Loader"]

logger = logging.getLogger(__name__)

# While one stalls, another can be read.
AT_ONCE = 2
# Files and folders in an adapter's folder: a handful, and what its owner keeps beside them.
MOST_ENTRIES = 10_000
# Folders inside each other, the adapter's own included; looking for a link at each level takes quadratic time.
MOST_LEVELS = 32


class Loader:
    """Loads adapters from below one folder, and unloads any.

    Args:
        settings: the folder, and how many adapters of which size.
        engine: that loads them.
        registry: that serves them.
        metrics: that show them.
        feedback: that watches them.
    """

    def __init__(
        self, settings: Settings, engine: Engine, registry: Registry, metrics: Metrics, feedback: Feedback
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._registry = registry
        self._metrics = metrics
        self._feedback = feedback
        self._threads = ThreadPerTask(settings.adapter_load_timeout_s)
        self._reading = asyncio.Semaphore(AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def load(self, name: str, path: str, *, by: str, replace: bool = False) -> tuple[AdapterHandle, bool]:
        """The adapter under that name, and whether there was none before; the same contents again are no error.

        Args:
            name: what requests will call it.
            path: of its folder, below the root.
            by: whoever wants it, for the log.
            replace: whether it may take the place of other contents under that name, between two requests.

        Raises:
            ForbiddenError: if the server loads none, or none from there.
            InvalidRequestError: if it is no adapter of this base model, or the name is unusable.
            TooLargeError: if its files are too large.
            AdapterConflictError: if the name is taken by other contents, or there are too many adapters already.
            DeadlineExceededError: if its files could not be read in time.
        """
        try:
            root = self._enabled()
            try:
                check_name(name)
            except ConfigError as exc:
                raise InvalidRequestError(f"{exc}: choose another name", param="name") from exc
            write_down(logger, "adapter_loading", by=by, adapter=name, path=path)
            async with self._locks.setdefault(name, asyncio.Lock()):
                handle, outcome, old = await self._load(root, name, path, replace=replace)
        except ServerError as exc:
            self._refused(exc, by=by, adapter=name, path=path)
            raise
        was = old.digest if old is not None and old.digest != handle.digest else None
        write_down(logger, outcome, by=by, adapter=name, path=path, digest=handle.digest, was=was)
        if old is not None and old is not handle:  # last, for the engine may be busy
            await self._engine.forget(old)
        return handle, old is None

    async def unload(self, name: str, *, by: str) -> None:
        """Takes no more requests for it; those in flight finish on it.

        Args:
            name: what requests call it.
            by: whoever wants it, for the log.

        Raises:
            ForbiddenError: if the server's adapters are fixed.
            UnknownAdapterError: if there is none of that name.
        """
        try:
            self._enabled()
            handle = self._registry.remove(name)
        except ServerError as exc:
            self._refused(exc, by=by, adapter=name)
            raise
        self._release(handle)
        write_down(logger, "adapter_unloaded", by=by, adapter=name, digest=handle.digest)
        await self._engine.forget(handle)

    async def _load(
        self, root: Path, name: str, path: str, *, replace: bool
    ) -> tuple[AdapterHandle, str, AdapterHandle | None]:
        """The adapter that answers to the name from now on, what was done, and the one that answered to it before."""
        self._check_room(name)
        handle = await self._read(root, name, path)
        try:
            self._check_room(name)
            old = self._registry.get(name)
            if old is None:
                self._registry.add(handle)
                self._metrics.adapter_loaded(handle)
                return handle, "adapter_loaded", None
            if (old.digest, old.calibration_digest) == (handle.digest, handle.calibration_digest):
                return old, "adapter_kept", old
            if not replace:
                raise AdapterConflictError(
                    f"Another adapter is loaded as {name!r}, or the same with another calibration ({old.digest}): "
                    f"replace it with PUT /v1/adapters/{name}, unload it first, or choose another name.",
                    param="name",
                )
            self._registry.replace(handle)
            self._release(old)
            self._metrics.adapter_loaded(handle)
            return handle, "adapter_replaced", old
        finally:
            if self._registry.get(name) is not handle:
                await self._engine.forget(handle)

    async def _read(self, root: Path, name: str, path: str) -> AdapterHandle:
        """The adapter in a folder, proved, though not served yet."""
        try:
            async with self._reading:
                looking = partial(self._folder, root, path)
                folder = await self._threads.run(f"The look into the folder of adapter {name}", looking)
                return await self._engine.load_adapter(folder, name)
        except StalledError as exc:
            raise DeadlineExceededError(str(exc), code="adapter_stalled", param="path") from exc
        except BloraError as exc:
            raise InvalidRequestError(_below(folder, path, exc), code="invalid_adapter", param="path") from exc

    def _check_room(self, name: str) -> None:
        most = self._settings.max_adapters
        if self._registry.get(name) is None and len(self._registry) >= most:
            raise AdapterConflictError(
                f"All {most} places for adapters are taken: unload one, or raise --max-adapters.",
                code="too_many_adapters",
            )

    def _release(self, handle: AdapterHandle) -> None:
        self._metrics.adapter_unloaded(handle)
        self._feedback.forget(handle)

    def _refused(self, error: ServerError, **known: str) -> None:
        write_down(logger, "adapter_refused", level=logging.WARNING, **known, code=error.code, reason=str(error))

    def _enabled(self) -> Path:
        """The folder below which adapters lie."""
        root = self._settings.adapter_root
        if root is None:
            raise ForbiddenError("This server's adapters are fixed: start it with --adapter-root to load others.")
        return root.absolute()

    def _folder(self, root: Path, path: str) -> Path:
        """The adapter's folder, of which no part lies outside the root, whatever its links say."""
        outside = ForbiddenError("The path leads out of --adapter-root: name a folder below it.", param="path")
        try:
            root = root.resolve()
            folder = (root / path).resolve()
            if not folder.is_relative_to(root):
                raise outside
            files = _entries(folder)
            if not all(file.resolve().is_relative_to(root) for file in files):
                raise outside
            size = sum(file.stat().st_size for file in files if file.is_file())
        except (OSError, RuntimeError, ValueError) as exc:  # a loop of links, a name that no file can have
            why = (
                exc.strerror
                if isinstance(exc, OSError)
                else "links that lead in a circle, or a name that no file can have"
            )
            raise InvalidRequestError(
                f"There is no adapter at this path ({why}): name an adapter's folder.",
                code="invalid_adapter",
                param="path",
            ) from exc
        if size > self._settings.max_adapter_bytes:
            raise TooLargeError(
                f"got an adapter of {size} bytes, expected at most {self._settings.max_adapter_bytes}: make a smaller "
                "one, or raise --max-adapter-bytes",
                code="adapter_too_large",
                param="path",
            )
        return folder


def _entries(folder: Path) -> list[Path]:
    """The folder and all that lies in it; links are not followed.

    Raises:
        TooLargeError: if there is more than an adapter and what its owner keeps beside it.
    """
    entries = level = [folder]
    for _ in range(MOST_LEVELS):
        folders = (entry for entry in level if entry.is_dir() and not entry.is_symlink())
        inside = (entry for outer in folders for entry in _inside(outer))
        level = list(islice(inside, MOST_ENTRIES + 1 - len(entries)))
        entries = entries + level
        if len(entries) > MOST_ENTRIES:
            break
        if not level:
            return entries
    raise TooLargeError(
        f"The folder holds {MOST_ENTRIES} files or more, or has more than {MOST_LEVELS} levels: name an adapter's own "
        "folder.",
        code="adapter_too_large",
        param="path",
    )


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except PermissionError:  # a lost+found, say: nothing in it can be loaded either
        return []


def _below(folder: Path, path: str, error: Exception) -> str:
    """What an error says of a folder, by the path that was asked for: where the root lies is nobody's business."""
    return str(error).replace(str(folder), path.rstrip("/"))
