"""Adapters that come and go while the server runs.

A request has taken its handle from the registry before, so that neither loading nor unloading disturbs it.
"""

import asyncio
from pathlib import Path

from blora.errors import BloraError, ConfigError
from blora.server.engines.protocol import Engine
from blora.server.errors import AdapterConflictError, ForbiddenError, InvalidRequestError, TooLargeError
from blora.server.feedback import Feedback
from blora.server.metrics import Metrics
from blora.server.registry import AdapterHandle, Registry
from blora.server.settings import Settings

__all__ = ["Shelf", "check_draws"]


class Shelf:
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
        self._one_at_a_time = asyncio.Lock()

    async def load(self, name: str, path: str, *, replace: bool = False) -> tuple[AdapterHandle, bool]:
        """The adapter under that name, and whether it was not there before; the same contents again are no error.

        Args:
            name: what requests will call it.
            path: of its folder, below the root.
            replace: whether it may take the place of other contents under that name.

        Raises:
            ForbiddenError: if the server loads none, or none from there.
            InvalidRequestError: if it is no adapter of this base model, or the name is unusable.
            TooLargeError: if its files are too large.
            AdapterConflictError: if the name is taken by other contents, or there are too many adapters already.
        """
        root = self._enabled()
        async with self._one_at_a_time:
            folder = await asyncio.to_thread(self._folder, root, path)
            taken = self._registry.get(name)
            most = self._settings.max_adapters
            if taken is None and len(self._registry) >= most:
                raise AdapterConflictError(
                    f"got one adapter more than {most}, expected at most so many: unload one", code="too_many_adapters"
                )
            try:
                handle = await self._engine.load_adapter(folder, name)
            except BloraError as exc:
                raise _invalid(exc) from exc
            same = taken is not None and (taken.digest, taken.calibration) == (handle.digest, handle.calibration)
            try:
                if taken is None or (replace and not same):
                    await self._put(handle, taken)
            finally:
                if self._registry.get(name) is not handle:
                    await self._engine.forget(handle)
            if taken is not None and not (same or replace):
                raise AdapterConflictError(
                    f"got another adapter {name!r}, or another calibration of it, than the one that is loaded, "
                    f"{taken.digest}, expected the same or another name: unload the old one first",
                    param="name",
                )
            return (taken, False) if taken is not None and same else (handle, True)

    async def _put(self, handle: AdapterHandle, taken: AdapterHandle | None) -> None:
        """Into the registry, in the place of another."""
        try:
            check_draws(handle, self._settings.n_samples_cap)
            if taken is not None:
                self._registry.remove(taken.name)
            self._registry.add(handle)
        except BloraError as exc:
            raise _invalid(exc) from exc
        if taken is not None:
            self._let_go(taken)
        self._metrics.adapter_loaded(handle)
        if taken is not None:  # last, for the engine may be busy
            await self._engine.forget(taken)

    def _let_go(self, handle: AdapterHandle) -> None:
        self._metrics.adapter_unloaded(handle)
        self._feedback.forget(handle)

    async def unload(self, name: str) -> None:
        """Takes no more requests for it; those in flight finish on it.

        Raises:
            ForbiddenError: if the server's adapters are fixed.
            UnknownAdapterError: if there is none of that name.
        """
        self._enabled()
        async with self._one_at_a_time:
            handle = self._registry.remove(name)
            self._let_go(handle)
            await self._engine.forget(handle)

    def _enabled(self) -> Path:
        """The folder below which adapters lie."""
        root = self._settings.adapter_root
        if root is None:
            raise ForbiddenError("got a change of adapters, expected none: they are fixed without --adapter-root")
        return root.resolve()

    def _folder(self, root: Path, path: str) -> Path:
        """The adapter's folder, of which no part lies outside the root, whatever its links say."""
        outside = ForbiddenError("got a path that leads out of --adapter-root, expected one below it", param="path")
        try:
            folder = (root / path).resolve()
            if not folder.is_relative_to(root):
                raise outside
            files = [folder, *folder.rglob("*")] if folder.is_dir() else [folder]
            if not all(file.resolve().is_relative_to(root) for file in files):
                raise outside
            size = sum(file.stat().st_size for file in files if file.is_file())
        except (OSError, RuntimeError, ValueError) as exc:  # a loop of links, a name that no file can have
            raise InvalidRequestError(
                f"got a path that leads nowhere ({exc}), expected an adapter's folder",
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


def _invalid(exc: BloraError) -> InvalidRequestError:
    return InvalidRequestError(str(exc), code="invalid_adapter", param="path")


def check_draws(handle: AdapterHandle, cap: int) -> None:
    """Makes sure that an adapter can be asked as it wants to be.

    Raises:
        ConfigError: if it wants more draws than the server allows.
    """
    wanted = handle.config.sampling.n_samples
    if wanted > cap:
        raise ConfigError(
            f"got adapter {handle.name!r} with {wanted} draws, expected at most {cap}: raise --n-samples-cap"
        )
