"""Loading, replacing and unloading of adapters while the server runs.

Requests in flight keep their handles, so that changes do not disturb them. Each change and each refused change is
logged with the name of whoever requested it.
"""

import asyncio
import errno
import logging
from functools import partial
from itertools import islice
from pathlib import Path
from weakref import WeakValueDictionary

from blora.disk.files import UnreadableError, may_pass
from blora.errors import BloraError, ConfigError
from blora.server.adapters.registry import Registry, check_adapter_name
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import Engine, EngineUnavailableError
from blora.server.errors import (
    AdapterConflictError,
    AdapterUnavailableError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidRequestError,
    ServerError,
    TooLargeError,
)
from blora.server.monitoring.feedback import Feedback
from blora.server.monitoring.logs import log_outcome
from blora.server.monitoring.metrics import ServerMetrics
from blora.server.scheduling.thread_per_task import StalledError, ThreadPerTask
from blora.server.settings import Settings

__all__ = ["Loader"]

logger = logging.getLogger(__name__)

# Adapters that are read at the same time, so that a stalled one does not block the other.
AT_ONCE = 2
# Most files and folders in an adapter's folder: its own few, and files that its owner keeps beside them.
MOST_ENTRIES = 10_000
# Most nested folders, including the adapter's own; resolving links at each level takes quadratic time.
MOST_LEVELS = 32
# Most times that a path is resolved again because a link in it was replaced by a file.
RESOLVED_AGAIN = 4


class Loader:
    """Loader of adapters from below one folder; unloads any adapter.

    Args:
        settings: the folder, and the limits on the number and size of adapters.
        engine: loads the adapters.
        registry: the served adapters.
        metrics: shows the served adapters.
        feedback: holds the outcomes of their predictions.
    """

    def __init__(
        self, settings: Settings, engine: Engine, registry: Registry, metrics: ServerMetrics, feedback: Feedback
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._registry = registry
        self._metrics = metrics
        self._feedback = feedback
        self._threads = ThreadPerTask(settings.adapter_load_timeout_s)
        self._reading = asyncio.Semaphore(AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._sources: dict[str, Path] = {}  # by name: the folder that the served adapter was last loaded from

    async def load(
        self, name: str, path: str, *, by: str, replace: bool = False, follow: bool = False
    ) -> tuple[AdapterHandle, bool]:
        """Load an adapter, and return its handle and whether the name was free.

        Loading the same contents again is no error.

        Args:
            name: the name to serve the adapter under.
            path: path of its folder, below the root.
            by: name of whoever requested it, for the log.
            replace: whether the adapter may replace other contents of that name.
            follow: whether the adapter may replace other contents that were loaded from the same path. One without a
                calibration and a policy, which answers everything, then does not replace one that has either.

        Raises:
            ForbiddenError: if the server has no adapter root, or the path leads out of it.
            InvalidRequestError: if the folder holds no adapter of this base model, or the name is invalid.
            TooLargeError: if the adapter's files are too large.
            AdapterConflictError: if the name belongs to other contents, or there are too many adapters.
            DeadlineExceededError: if the files could not be read in time.
            AdapterUnavailableError: if the files cannot be read, or the engine cannot load an adapter, at the moment.
        """
        try:
            root = self._enabled()
            try:
                check_adapter_name(name)
            except ConfigError as exc:
                raise InvalidRequestError(f"{exc}: choose another name", param="name") from exc
            log_outcome(logger, "adapter_loading", by=by, adapter=name, path=path)
            async with self._locks.setdefault(name, asyncio.Lock()):
                handle, outcome, old = await self._load(root, name, path, replace=replace, follow=follow)
        except ServerError as exc:
            self._refused(exc, by=by, adapter=name, path=path)
            raise
        was = old.digest if old is not None and old.digest != handle.digest else None
        log_outcome(logger, outcome, by=by, adapter=name, path=path, digest=handle.digest, was=was)
        if old is not None and old is not handle:  # last, because the engine may be busy
            await self._engine.forget(old)
        return handle, old is None

    def serves(self, name: str, path: str) -> bool:
        """Return whether the adapter that is served under a name was last loaded from a path below the root."""
        root = self._settings.adapter_root
        return root is not None and self._sources.get(name) == root.absolute() / path

    async def unload(self, name: str, *, by: str) -> None:
        """Unload an adapter; requests in flight still finish on it.

        Args:
            name: the adapter's name.
            by: name of whoever requested it, for the log.

        Raises:
            ForbiddenError: if the server has no adapter root.
            UnknownAdapterError: if no adapter of that name is loaded.
        """
        try:
            self._enabled()
            handle = self._registry.remove(name)
        except ServerError as exc:
            self._refused(exc, by=by, adapter=name)
            raise
        self._sources.pop(name, None)
        self._release(handle)
        log_outcome(logger, "adapter_unloaded", by=by, adapter=name, digest=handle.digest)
        await self._engine.forget(handle)

    async def _load(
        self, root: Path, name: str, path: str, *, replace: bool, follow: bool
    ) -> tuple[AdapterHandle, str, AdapterHandle | None]:
        """Return the handle now served under the name, the outcome for the log, and the handle served before."""
        self._check_room(name)
        handle = await self._read(root, name, path)
        try:
            self._check_room(name)
            old = self._registry.get(name)
            if old is None:
                self._registry.add(handle)
                self._sources[name] = root / path
                self._watch(handle)
                return handle, "adapter_loaded", None
            if (old.digest, old.calibration_digest) == (handle.digest, handle.calibration_digest):
                if not (follow and name in self._sources):
                    self._sources[name] = root / path
                return old, "adapter_kept", old
            if not (replace or (follow and self.serves(name, path))):
                raise AdapterConflictError(
                    f"Another adapter, or the same with another calibration, is loaded as {name!r} ({old.digest}): "
                    f"replace it with PUT /v1/adapters/{name}, unload it first, or choose another name.",
                    param="name",
                )
            if follow and old.may_abstain and not handle.may_abstain:
                raise AdapterConflictError(
                    f"got an adapter {name!r} without a calibration or a policy, which would answer everything, "
                    "expected one that abstains, as the adapter that is served does: run blora calibrate, or replace "
                    f"the adapter with PUT /v1/adapters/{name}.",
                    param="path",
                )
            self._registry.replace(handle)
            self._sources[name] = root / path
            self._release(old)
            self._watch(handle)
            return handle, "adapter_replaced", old
        finally:
            if self._registry.get(name) is not handle:
                await self._engine.forget(handle)

    async def _read(self, root: Path, name: str, path: str) -> AdapterHandle:
        """Return the handle of the adapter in a folder, loaded and tested but not yet served."""
        try:
            async with self._reading:
                looking = partial(self._folder, root, path)
                folder = await self._threads.run(f"Reading the folder of adapter {name}", looking, of=path)
                return await self._engine.load_adapter(folder, name)
        except StalledError as exc:
            raise DeadlineExceededError(str(exc), code="adapter_stalled", param="path") from exc
        except (EngineUnavailableError, UnreadableError) as exc:
            raise AdapterUnavailableError(_below(folder, path, exc)) from exc
        except BloraError as exc:
            raise InvalidRequestError(_below(folder, path, exc), code="invalid_adapter", param="path") from exc

    def has_room(self, name: str) -> bool:
        """Return whether the limit on the number of adapters allows an adapter of a name."""
        return self._registry.get(name) is not None or len(self._registry) < self._settings.max_adapters

    def _check_room(self, name: str) -> None:
        if not self.has_room(name):
            raise AdapterConflictError(
                f"The server has {self._settings.max_adapters} adapters, which is the limit: unload one, or raise "
                "--max-adapters.",
                code="too_many_adapters",
            )

    def _watch(self, handle: AdapterHandle) -> None:
        self._metrics.adapter_loaded(handle)
        self._feedback.watch(handle)

    def _release(self, handle: AdapterHandle) -> None:
        self._metrics.adapter_unloaded(handle)
        self._feedback.forget(handle)

    def _refused(self, error: ServerError, **known: str) -> None:
        log_outcome(logger, "adapter_refused", level=logging.WARNING, **known, code=error.code, reason=str(error))

    def _enabled(self) -> Path:
        """Return the adapter root; raise ForbiddenError without one."""
        root = self._settings.adapter_root
        if root is None:
            raise ForbiddenError("This server's adapters are fixed: start it with --adapter-root to load others.")
        return root.absolute()

    def _folder(self, root: Path, path: str) -> Path:
        """Return the adapter's folder after checking that no part of it, links resolved, lies outside the root."""
        outside = ForbiddenError("The path leads out of --adapter-root: name a folder below it.", param="path")
        try:
            root = _resolved(root)
            folder = _resolved(root / path)
            if not folder.is_relative_to(root):
                raise outside
            files = _entries(folder)
            if not all(_resolved(file).is_relative_to(root) for file in files):
                raise outside
            size = sum(file.stat().st_size for file in files if file.is_file())
        except (OSError, RuntimeError, ValueError) as exc:  # a loop of links, or an impossible file name
            raise _refusal(exc) from exc
        if size > self._settings.max_adapter_bytes:
            raise TooLargeError(
                f"got an adapter of {size} bytes, expected at most {self._settings.max_adapter_bytes}: make a smaller "
                "one, or raise --max-adapter-bytes",
                code="adapter_too_large",
                param="path",
            )
        return folder


def _resolved(path: Path) -> Path:
    """Return a path with its links resolved, as `Path.resolve` does.

    Before Python 3.13, `Path.resolve` fails with EINVAL if a file replaces a link while the link is read; the path then
    leads to that file, and is resolved again.
    """
    for _ in range(RESOLVED_AGAIN):
        try:
            return path.resolve()
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
    return path.resolve()


def _entries(folder: Path) -> list[Path]:
    """Return the folder and everything below it, without following links.

    Raises:
        TooLargeError: if the folder has too many entries or levels.
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
    except PermissionError:  # a lost+found, for example, from which nothing can be loaded either
        return []


def _refusal(error: Exception) -> ServerError:
    """Return the refusal of a folder that cannot be listed: for the moment, or for good if there is none."""
    if isinstance(error, OSError) and may_pass(error):
        return AdapterUnavailableError(
            f"The folder at this path cannot be read ({error.strerror}): check its permissions and its file system, "
            "and load it again.",
            param="path",
        )
    why = error.strerror if isinstance(error, OSError) else "its links form a loop, or its name is impossible"
    return InvalidRequestError(
        f"There is no adapter at this path ({why}): name an adapter's folder.", code="invalid_adapter", param="path"
    )


def _below(folder: Path, path: str, error: Exception) -> str:
    """Return an error's message with the requested path for the folder, which hides the location of the root."""
    return str(error).replace(str(folder), path.rstrip("/"))
