"""The engine on a separate vLLM server, for base models too large for one device of this process.

Each posterior draw of a LoRA is an ordinary LoRA there, and the draws are averaged here. For an adapter with a head,
vLLM returns the states of one pass, under the LoRA below the head if there is one, and the draws are made here. The
base model's weights are also loaded here, on the CPU, to check adapters against them and to test at the start that vLLM
gives the same answers.
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
from blora.base_model import load_base_model
from blora.decision.stopping import looks
from blora.errors import AdapterError, ConfigError
from blora.inference.branches import score_all
from blora.inference.packing import PackedRow
from blora.posterior.decision_head import Features, HeadDraws
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.loading import check_adapters, model_of, probe_row, read_adapter, warn_of_shadowed
from blora.server.engines.outcomes import draws_suffice, outcome, probabilities
from blora.server.engines.packing_engine import PackingEngine, in_thread
from blora.server.engines.protocol import EngineUnavailableError, Job, Loaded, Outcome
from blora.server.engines.sources import local_adapters
from blora.server.scheduling.control import Control
from blora.server.scheduling.thread_per_task import ThreadPerTask
from blora.server.settings import Settings
from blora.vllm.client import UnknownLoraError, VllmClient, VllmError, VllmUnreachableError
from blora.vllm.loras import lora_folder, lora_name, n_loras, write_loras
from blora.vllm.states import (
    DTYPE,
    check_readable,
    check_same,
    check_same_states,
    read_log_probs,
    with_states,
)

__all__ = ["VllmEngine"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._name = ""  # of the base model in vLLM
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
            self._name, most = await self._vllm.base_model()
            self._max_length = min(base.max_length, most - 1)
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
            await in_thread(self._working, partial(write_loras, adapter, self._loaded_base(), self._folder))
            for s in range(n_loras(handle.config)):
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
            for s in range(n_loras(handle.config)):
                await self._vllm.unload(lora_name(handle.digest, s))
        except VllmError as exc:
            logger.warning("vLLM does not unload adapter %s: %s", handle.name, exc)

    async def probe(self) -> None:
        """Implement Engine."""
        for handle in self._proved[:1]:
            await self._ask_once(handle, await self._probe_row(handle))

    async def close(self) -> None:
        """Implement Engine."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._vllm.close()
        self._working.shutdown(wait=False, cancel_futures=True)

    async def _probe_row(self, handle: AdapterHandle) -> PackedRow:
        return await in_thread(self._working, partial(probe_row, self._loaded_base(), handle, self._max_length))

    def _read(self, path: Path, name: str | None) -> tuple[Adapter, AdapterHandle]:
        """Return an adapter and its handle; raise AdapterError for a head on states that vLLM does not give."""
        if (head := read_config(path).head) is not None:
            check_readable(name or path.name, head, self._loaded_base())
        return read_adapter(path, name, self._loaded_base(), self._settings, DTYPE)

    async def _load_draw(self, digest: str, s: int) -> None:
        await self._vllm.load(lora_name(digest, s), lora_folder(self._folder, digest, s))

    async def _prove(self, adapter: Adapter, handle: AdapterHandle) -> None:
        """Compare vLLM's answer under the first draw, and the states that a head reads, with those computed here.

        Raises:
            AdapterError: if they differ by more than rounding explains.
        """
        base = self._loaded_base()
        row = await self._probe_row(handle)
        warn_of_shadowed(handle, row)

        def here() -> tuple[Tensor, Tensor | None]:
            states: list[Tensor | None] = [None]
            attach(base, adapter)
            with torch.inference_mode():
                found = score_all(
                    base.model,
                    [row],
                    handle.bank.first(1),
                    max_batch_tokens=row.n_tokens,
                    read=lambda _, features: states.append(features.prompt),
                )
            return found[0, 0].exp(), states[-1]

        expected, states_here = await in_thread(self._working, here)
        found, states = await self._ask_once(handle, row)
        check_same(found, expected, adapter.name, base)
        if states is not None and states_here is not None:
            check_same_states(states, states_here, adapter.name, base)

    async def _ask_once(self, handle: AdapterHandle, row: PackedRow) -> tuple[Tensor, Tensor | None]:
        """Return the probabilities (C,) under the first draw, without recalibration, and the states of a head."""
        if handle.config.head is None:
            return (await self._log_probs(handle, row, 0)).exp(), None
        log_probs, features = await self._read_there(handle, row, 1, Control().look)
        return log_probs[0].exp(), features.prompt

    async def _read_there(
        self, handle: AdapterHandle, row: PackedRow, n_samples: int, look: Callable[[], None]
    ) -> tuple[Tensor, Features]:
        """Return log-probabilities (S, C) under the first draws of a head, and the features, from states of vLLM's."""
        base, draws = self._loaded_base(), handle.bank.first(n_samples)
        assert isinstance(draws, HeadDraws)  # the adapter has a head
        model = lora_name(handle.digest, 0) if n_loras(handle.config) else self._name
        [layer] = draws.head.config.depths
        read = await self._under_lora(handle, 0, partial(with_states, self._vllm, model, row, layer, look))
        return await in_thread(self._working, partial(read_log_probs, base, draws, read))

    async def _answer_by_head(self, job: Job, look: Callable[[], None]) -> Outcome:
        """Return the outcome under all draws of a head, from one request."""
        log_probs, features = await self._read_there(job.handle, cast(PackedRow, job.row), job.n_samples, look)
        [distance] = job.handle.distances(features)
        return outcome(job, log_probs, distance, DTYPE)

    async def _answer(self, job: Job, control: Control) -> Outcome:
        """Return the outcome under all draws, or enough draws for the decision; a failure raises."""
        if job.handle.config.head is not None:
            return await self._answer_by_head(job, control.look)
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
        totals = await self._under_lora(handle, s, partial(self._totals, handle, row, s, look))
        return (torch.tensor(totals) / torch.tensor(row.divisors)).log_softmax(-1)

    async def _under_lora(self, handle: AdapterHandle, s: int, ask: Callable[[], Coroutine[None, None, T]]) -> T:
        """Return what is asked under a draw's LoRA; vLLM is given the LoRA again if it has none of that name."""
        try:
            return await ask()
        except UnknownLoraError:  # vLLM was restarted, or another server unloaded the LoRA
            if s >= n_loras(handle.config):
                raise
            await self._load_draw(handle.digest, s)
            return await ask()

    async def _totals(self, handle: AdapterHandle, row: PackedRow, s: int, look: Callable[[], None]) -> list[float]:
        """Return the log-probability of each choice's tokens under one draw; calls `look` before each request."""
        lora = lora_name(handle.digest, s)
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
