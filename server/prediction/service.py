"""The service behind the routes, and its life cycle: loading, ready, draining, stopped."""

import asyncio
import logging
import time
from pathlib import Path

from blora.errors import BloraError, ConfigError, install_hint
from blora.server.adapters.folder_sync import FolderSync
from blora.server.adapters.loader import Loader
from blora.server.adapters.registry import Registry
from blora.server.engines.protocol import Engine, Job, Outcome
from blora.server.errors import DrainingError, NotReadyError
from blora.server.monitoring.build import Build
from blora.server.monitoring.feedback import Feedback
from blora.server.monitoring.ledgers.memory import MemoryLedger
from blora.server.monitoring.ledgers.protocol import Ledger
from blora.server.monitoring.metrics import ServerMetrics
from blora.server.monitoring.tracing import Traces
from blora.server.prediction.predictor import Predictor
from blora.server.scheduling.batcher import Batcher
from blora.server.scheduling.control import UnavailableError
from blora.server.scheduling.thread_per_task import StalledError, ThreadPerTask
from blora.server.settings import Settings

__all__ = ["Service"]

logger = logging.getLogger(__name__)

# The server is not ready if a forward pass has made no progress for these seconds and for the time of this many full
# passes.
_SILENT_S, _SILENT_PASSES = 30.0, 5


class Service:
    """Owner of all parts behind the routes. The model loads in a task, so that /livez never waits for it.

    Args:
        settings: the server's settings.
        engine: computes the probabilities; not loaded yet.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.build = Build.current()
        self.started = int(time.time())
        self.metrics = ServerMetrics(self.build)
        self.traces = Traces(settings.otlp_endpoint, self.build)
        self.settled = asyncio.Event()
        """Set once loading has succeeded or failed."""
        self.failure: str | None = None
        """Reason for a failed loading, in one line."""
        self.draining = False
        self._engine = engine
        self._batcher: Batcher[Job, Outcome] = Batcher(
            engine.run,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            max_queue_requests=settings.max_queue_requests,
            max_input_passes=settings.max_input_passes,
            timeout_s=settings.timeout_s,
            observer=self.metrics,
        )
        self.metrics.show_backlog(lambda: self._batcher.backlog_s)
        self._predictor: Predictor | None = None
        self._loader: Loader | None = None
        self._feedback: Feedback | None = None
        self._probing: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the worker and the loading."""
        self._batcher.start()
        self._loading = asyncio.create_task(self._load(), name="loading")

    def begin_drain(self) -> None:
        """Make /readyz fail for load balancers; requests are still answered."""
        self.draining = True

    async def stop(self) -> None:
        """Stop all parts at once; every request without an answer gets DrainingError."""
        self.draining = True
        self._batcher.stop_admitting()
        for task in (self._loading, self._watching, self._probing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._batcher.stop()
        await self._engine.close()
        if self._feedback is not None:
            await self._feedback.close()
        await self.traces.close()

    @property
    def loaded(self) -> Predictor | None:
        """The predictor, or None before it is loaded."""
        return self._predictor

    @property
    def lost(self) -> str | None:
        """Error message of a device that computes nothing any more in this process, or None."""
        return self._engine.lost

    def predictor(self) -> Predictor:
        """Return the predictor.

        Raises:
            NotReadyError: if the model is not loaded.
        """
        if self._predictor is None:
            raise NotReadyError(
                f"The model is not loaded ({self.failure or 'loading'}): try again once /readyz gives 200."
            )
        return self._predictor

    def loader(self) -> Loader:
        """Return the loader of adapters.

        Raises:
            NotReadyError: if the model is not loaded.
        """
        self.predictor()
        assert self._loader is not None  # set together with the predictor
        return self._loader

    def check_alive(self) -> None:
        """Raise an error if only another process could answer.

        Raises:
            NotReadyError: if the device is lost, or a forward pass has hung for longer than hang_timeout_s.
        """
        if self.lost is not None:
            raise NotReadyError(f"The device computes nothing any more ({self.lost}): restart the server")
        most, silent_s = self.settings.hang_timeout_s, self._batcher.silent_s
        if most and silent_s > most:
            raise NotReadyError(
                f"The running forward pass has made no progress for {silent_s:.0f} s, longer than hang_timeout_s = "
                f"{most:g}: restart the server"
            )

    async def check_ready(self) -> None:
        """Raise an error if requests would not be answered; a full queue is not a reason.

        After a failed forward pass a small one has to succeed; a pass without progress has to go on.

        Raises:
            DrainingError: if the server is shutting down.
            NotReadyError: if the model is not loaded, fails or hangs, or no adapter is loaded.
        """
        if self.draining:
            raise DrainingError("The server is shutting down: use another replica.")
        if not len(self.predictor().registry):
            raise NotReadyError("No adapter is loaded: load one.")
        silent_s = self._batcher.silent_s
        if silent_s > max(_SILENT_S, _SILENT_PASSES * self._batcher.pace.seconds(self.settings.max_batch_tokens)):
            raise NotReadyError(
                f"The running forward pass has made no progress for {silent_s:.0f} s: use another replica until it does"
            )
        if self._batcher.last_forward_failed:
            if self._probing is None or self._probing.done():  # one for all that ask at the same time
                self._probing = asyncio.create_task(self._engine.probe(), name="probing")
            try:
                await asyncio.shield(self._probing)
            except UnavailableError as exc:
                raise NotReadyError("What computes the answers cannot be reached: use another replica.") from exc
            except Exception as exc:
                logger.exception("The model fails")
                raise NotReadyError("The model's forward pass fails: see the log.") from exc

    async def _load(self) -> None:
        try:
            loaded = await self._engine.load()
            self.metrics.model_loaded(loaded.model)
            root = self.settings.adapter_root
            registry = Registry(loaded.adapters, self.settings.default_adapter, may_come=root is not None)
            ledger = _ledger(self.settings)
            self._feedback = feedback = Feedback(self.metrics, registry.get, ledger, self.settings.feedback_rate)
            for handle in registry:
                self.metrics.adapter_loaded(handle)
                feedback.watch(handle)
            predictor = Predictor(
                model=loaded.model,
                registry=registry,
                engine=self._engine,
                batcher=self._batcher,
                metrics=self.metrics,
                feedback=feedback,
                tracer=self.traces.tracer,
                settings=self.settings,
            )
            self._loader = Loader(self.settings, self._engine, registry, self.metrics, feedback)
            if root is not None:
                await self._watch(root, registry, self._loader)
            registry.warn_of_missing_default()
            self._predictor = predictor
        except BloraError as exc:
            self.failure = str(exc)
        except Exception as exc:
            logger.exception("Loading failed unexpectedly")
            self.failure = f"{type(exc).__name__}: {exc}"
        finally:
            self.settled.set()

    async def _watch(self, root: Path, registry: Registry, loader: Loader) -> None:
        """Start polling the adapter root, if configured, and wait a while for the adapters that are already there."""
        timeout_s = self.settings.adapter_load_timeout_s
        try:
            if not await ThreadPerTask(timeout_s).run("Reading the adapter root", root.is_dir):
                raise ConfigError(f"got adapter root {root}, expected an existing directory")
        except StalledError as exc:
            logger.error("The adapters below %s are not loaded yet: %s", root, exc)
        if self.settings.adapter_poll_s:
            watch = FolderSync(root, loader, registry, timeout_s=timeout_s)
            self._watching = asyncio.create_task(watch.run(self.settings.adapter_poll_s), name="watching")
            try:
                async with asyncio.timeout(timeout_s):
                    await watch.looked.wait()
            except TimeoutError:
                logger.warning("Some adapters in %s are still loading; the server does not wait for them", root)


def _ledger(settings: Settings) -> Ledger:
    if settings.feedback_redis is None:
        return MemoryLedger(settings.max_feedback_predictions)
    try:
        from blora.server.monitoring.ledgers.redis_ledger import RedisLedger
    except ImportError as exc:
        raise ConfigError(
            f"--feedback-redis needs the package redis: {install_hint('redis')}, or leave it out"
        ) from exc
    return RedisLedger(settings.feedback_redis, settings.feedback_keep_s, settings.feedback_redis_password_file)
