"""The engine on a separate vLLM server: each posterior draw is an ordinary LoRA there, and the draws are averaged here.

For base models too large for one device of this process. The base model's weights are also loaded here, on the CPU, to
check adapters against them and to test at the start that vLLM gives the same answers.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from blora.adapter import Adapter, attach, read_config
from blora.adapter.export import export_draws
from blora.base_model import load_base_model
from blora.decision.stopping import looks
from blora.errors import AdapterError, ConfigError
from blora.inference.branches import score_all
from blora.inference.packing import PackedRow
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.loading import check_adapters, model_of, probe_row, read_adapter, warn_of_shadowed
from blora.server.engines.outcomes import draws_suffice, probabilities
from blora.server.engines.packing_engine import PackingEngine, in_thread
from blora.server.engines.protocol import EngineUnavailableError, Job, Loaded, Outcome
from blora.server.engines.sources import local_adapters
from blora.server.engines.vllm_client import UnknownLoraError, VllmClient, VllmError, VllmUnreachableError
from blora.server.scheduling.control import Control
from blora.server.scheduling.thread_per_task import ThreadPerTask
from blora.server.settings import Settings

__all__ = ["DTYPE", "VllmEngine"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# dtype in calibrations for this engine: vLLM's arithmetic differs from ours in any precision.
DTYPE = "vllm"
# Largest difference of a probability between vLLM and this process, under the same draw, that rounding explains.
PROBE_TOLERANCE = 0.1


class VllmEngine(PackingEngine):
    """Implementation of `blora.server.engines.protocol.Engine` with the LoRAs of a running vLLM.

    Args:
        settings: the base model, the adapters, vLLM's address, and the folder that both processes can read.
    """

    fresh_draws = False

    def __init__(self, settings: Settings) -> None:
        assert settings.engine_url is not None  # checked by the settings
        assert settings.engine_folder is not None
        # Not the event loop's default executor, which delays the loop's shutdown until a loading model is ready.
        self._working = ThreadPoolExecutor(4, "work")
        super().__init__(self._working)
        self._settings = settings
        self._folder = settings.engine_folder
        self._vllm = VllmClient(
            settings.engine_url, timeout_s=settings.timeout_s, concurrency=settings.engine_concurrency
        )
        self._reading = ThreadPerTask(settings.adapter_load_timeout_s)
        self._served: Counter[str] = Counter()  # number of handles by digest
        self._proved: list[AdapterHandle] = []
        self._leaving: set[asyncio.Task[None]] = set()

    async def load(self) -> Loaded:
        """Implement Engine."""
        disable_progress_bar()
        settings = self._settings
        check_adapters(settings)
        reading = partial(load_base_model, settings.base_model, device="cpu", dtype=settings.dtype)
        base = await in_thread(self._working, reading)
        self._base = base
        try:
            # The one token of an answer counts too.
            self._max_length = min(base.max_length, await self._vllm.max_length() - 1)
        except VllmError as exc:
            raise ConfigError(str(exc)) from exc
        sources = await in_thread(self._working, partial(local_adapters, settings))
        adapters = [await self.load_adapter(path, name) for path, name in sources]
        model = model_of(
            base,
            device="vllm",
            dtype=DTYPE,
            max_length=self._max_length,
            runs_whole_because="vLLM runs every layer for every draw",
        )
        return Loaded(model=model, adapters=tuple(adapters))

    async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
        """Implement Engine. Once no result is wanted any more, requests in progress are cancelled."""
        under = control or Control()
        return await _all(self._answer(job, under) for job in jobs)

    async def load_adapter(self, path: Path, name: str | None) -> AdapterHandle:
        """Implement Engine; without a name, serve the adapter under its folder's."""
        reading = partial(self._read, path, name)
        logger.info("Reading adapter %s", name or path)
        adapter, handle = await self._reading.run(f"Reading adapter {name or path}", reading, of=path)
        try:
            await in_thread(self._working, partial(self._export, adapter, handle.bank.n_samples))
            for s in range(handle.bank.n_samples):
                await self._load_draw(adapter.digest, s)
            await self._prove(adapter, handle)
        except Exception as exc:
            await self._unload(handle)
            if isinstance(exc, OSError | VllmError):
                passing = isinstance(exc, VllmUnreachableError | OSError)  # such as a full disk
                kind = EngineUnavailableError if passing else AdapterError
                raise kind(f"vLLM cannot serve adapter {adapter.name!r}: {exc}") from exc
            raise
        self._served[handle.digest] += 1
        self._proved.append(handle)
        return handle

    async def forget(self, handle: AdapterHandle) -> None:
        """Implement Engine. vLLM keeps the draws while a request may still need them."""
        self._proved.remove(handle)
        self._served[handle.digest] -= 1
        task = asyncio.create_task(self._release(handle))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _release(self, handle: AdapterHandle) -> None:
        await asyncio.sleep(self._settings.timeout_s)
        await self._unload(handle)

    async def _unload(self, handle: AdapterHandle) -> None:
        """Unload an adapter's draws from vLLM, unless another handle serves them."""
        if self._served[handle.digest] > 0:
            return
        try:
            for s in range(handle.bank.n_samples):
                await self._vllm.unload(_lora(handle.digest, s))
        except VllmError as exc:
            logger.warning("vLLM does not unload adapter %s: %s", handle.name, exc)

    async def probe(self) -> None:
        """Implement Engine."""
        for handle in self._proved[:1]:
            await self._log_probs(handle, await self._probe_row(handle), 0)

    async def close(self) -> None:
        """Implement Engine."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._vllm.close()
        self._working.shutdown(wait=False, cancel_futures=True)

    async def _probe_row(self, handle: AdapterHandle) -> PackedRow:
        return await in_thread(self._working, partial(probe_row, self._loaded_base(), handle, self._max_length))

    def _exported(self, digest: str) -> Path:
        return self._folder / digest.removeprefix("sha256:")

    def _read(self, path: Path, name: str | None) -> tuple[Adapter, AdapterHandle]:
        """Return an adapter and its handle; raise AdapterError for one with a head, whose states vLLM does not give."""
        config = read_config(path)
        if config.head is not None:
            gate = " and the policy's min_familiarity" if "min_familiarity" in (config.policy or {}) else ""
            raise AdapterError(
                f"got adapter {name or path.name!r} with a decision head, expected one without a head: the head{gate} "
                "need hidden states, which vLLM does not give; serve it with --engine torch, or train one with "
                "--head none"
            )
        return read_adapter(path, name, self._loaded_base(), self._settings, DTYPE)

    def _export(self, adapter: Adapter, n_samples: int) -> None:
        """Write the draws as LoRA folders, unless they exist; other servers may write them at the same time."""
        folder = self._exported(adapter.digest)
        if folder.is_dir():
            return
        try:
            export_draws(adapter, self._loaded_base(), folder, n_samples)
        except (OSError, AdapterError):
            if not folder.is_dir():
                raise

    async def _load_draw(self, digest: str, s: int) -> None:
        await self._vllm.load(_lora(digest, s), self._exported(digest) / f"draw-{s:03d}")

    async def _prove(self, adapter: Adapter, handle: AdapterHandle) -> None:
        """Compare vLLM's probabilities under the first draw with the probabilities computed here.

        Raises:
            AdapterError: if they differ by more than rounding explains.
        """
        base = self._loaded_base()
        row = await self._probe_row(handle)
        warn_of_shadowed(handle, row)

        def here() -> Tensor:
            attach(base, adapter)
            with torch.inference_mode():
                found = score_all(base.model, [row], handle.bank.first(1), max_batch_tokens=row.n_tokens)
            return found[0, 0].exp()

        expected = await in_thread(self._working, here)
        found = (await self._log_probs(handle, row, 0)).exp()
        apart = float((found - expected).abs().max())
        if not apart <= PROBE_TOLERANCE:
            raise AdapterError(
                f"The probabilities of adapter {adapter.name!r} from vLLM differ by {apart:.2f} from those computed "
                f"here, where at most {PROBE_TOLERANCE} is allowed: let vLLM serve the same base model ({base.ref.id})"
            )

    async def _answer(self, job: Job, control: Control) -> Outcome:
        """Return the outcome under all draws, or enough draws for the decision; a failure raises."""
        row = cast(PackedRow, job.row)
        seen = torch.empty(0, row.n_choices)
        for start, stop in pairwise([0, *(looks(job.n_samples) if job.stop is not None else [job.n_samples])]):
            log_probs = await _all(self._log_probs(job.handle, row, s, control) for s in range(start, stop))
            seen = torch.cat([seen, probabilities(job, torch.stack(log_probs), DTYPE)])
            if draws_suffice(job, seen) or not control.wants(job):
                break
        if draws_suffice(job, seen):
            control.finished(job, Outcome(seen))
        else:
            control.dropped(job)
        return Outcome(seen)

    async def _log_probs(self, handle: AdapterHandle, row: PackedRow, s: int, control: Control | None = None) -> Tensor:
        """Return the log-probabilities (C,) under one draw, normalised over the choices."""
        look = control.look if control is not None else Control().look
        try:
            totals = await self._totals(handle, row, s, look)
        except UnknownLoraError:  # vLLM was restarted, or another server unloaded the LoRA
            await self._load_draw(handle.digest, s)
            totals = await self._totals(handle, row, s, look)
        return (torch.tensor(totals) / torch.tensor(row.divisors)).log_softmax(-1)

    async def _totals(self, handle: AdapterHandle, row: PackedRow, s: int, look: Callable[[], None]) -> list[float]:
        """Return the log-probability of each choice's tokens under one draw; calls `look` before each request."""
        lora = _lora(handle.digest, s)
        if all(len(tokens) == 1 for tokens in row.continuations):
            return await self._vllm.next_token(lora, row.prompt, [token for (token,) in row.continuations], look)
        return [await self._vllm.continuation(lora, row.prompt, tokens, look) for tokens in row.continuations]


async def _all(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Return the results of all work, or raise its first error once the rest is cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _lora(digest: str, s: int) -> str:
    """Return the LoRA name of a draw, which contains the digest and so identifies the contents."""
    return f"{digest.removeprefix('sha256:')[:24]}-{s:03d}"
