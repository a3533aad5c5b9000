"""The engine with the model in this process: a thread packs, a thread computes, each adapter is read in its own thread.

A run that has to wait for others is parked at a checkpoint while the same thread computes the others.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from blora.adapter import Adapter, attach
from blora.adapter.opening import dtype_for_adapters, open_base
from blora.base_model import BaseModel, pick_device
from blora.decision.stopping import looks
from blora.errors import AdapterError
from blora.inference.branches import Branches
from blora.inference.checkpoints import between, checkpoint, checkpoints
from blora.inference.fork import why_whole
from blora.inference.interruptible import make_interruptible
from blora.inference.packing import PackedRow
from blora.posterior.decision_head import HeadDraws
from blora.posterior.draws import Draws
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.jobs import draws_key, draws_of, of_similar_length
from blora.server.engines.loading import (
    check_adapters,
    local_adapters,
    model_of,
    probe_row,
    read_adapter,
    warn_of_shadowed,
)
from blora.server.engines.outcomes import draws_suffice, probabilities
from blora.server.engines.packing_engine import PackingEngine, in_thread
from blora.server.engines.prefixes import AnyPrefix, Prefixes
from blora.server.engines.protocol import EngineUnavailableError, Job, Loaded, Outcome
from blora.server.engines.readings import familiarities, head_outcomes
from blora.server.engines.stack_scheduler import StackScheduler
from blora.server.scheduling.control import Control
from blora.server.scheduling.thread_per_task import ThreadPerTask
from blora.server.settings import Settings

__all__ = ["TorchEngine"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TorchEngine(PackingEngine):
    """Implementation of `blora.server.engines.protocol.Engine` with torch on one device.

    Args:
        settings: the base model, the device, the dtype and the adapters.
    """

    fresh_draws = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(ThreadPoolExecutor(1, "pack"))
        self._settings = settings
        # oneDNN caches compiled kernels for 1,024 shapes by default, so that memory grows for days of traffic. 64 cover
        # the shapes of the last few batches, which recur layer by layer within a batch.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        threads = partial(torch.set_num_threads, torch.get_num_threads())
        self._computing = ThreadPoolExecutor(1, "compute", initializer=threads)
        self._scheduler = StackScheduler(self._computing)
        self._reading = ThreadPerTask(settings.adapter_load_timeout_s)
        self._prefixes: Prefixes | None = None
        self._handles: list[AdapterHandle] = []

    async def load(self) -> Loaded:
        """Implement Engine."""
        # A progress bar that cannot be drawn because the log's disk is full never releases its lock.
        disable_progress_bar()
        settings = self._settings
        check_adapters(settings)
        sources = await in_thread(self._computing, partial(local_adapters, settings))
        device = pick_device(settings.device)
        pick = partial(
            dtype_for_adapters,
            settings.dtype,
            device,
            [path for path, _ in sources],
            allow_uncalibrated=settings.allow_uncalibrated,
        )
        dtype = await self._reading.run("Reading the calibrations", pick)
        base = await in_thread(self._computing, partial(self._load_base, device, dtype))
        adapters = tuple([await self.load_adapter(path, name) for path, name in sources])
        model = model_of(
            base,
            device=str(base.device),
            dtype=base.dtype_name,
            max_length=base.max_length,
            runs_whole_because=why_whole(base.model),
        )
        return Loaded(model=model, adapters=adapters)

    async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
        """Implement Engine."""
        return await self._compute(partial(self._score_under, control or Control(), jobs))

    async def load_adapter(self, path: Path, name: str | None) -> AdapterHandle:
        """Implement Engine; without a name, serve the adapter under its folder's."""
        reading = partial(self._read_adapter, path, name)
        try:
            adapter, handle, row = await self._reading.run(f"Reading adapter {name or path}", reading, of=path)
            await self._compute(partial(self._prove, adapter, handle, row))
        except torch.OutOfMemoryError as exc:
            self._loaded_prefixes().clear()
            raise EngineUnavailableError(
                f"got adapter {name or path.name!r}, for which the device has too little memory, expected enough for "
                "its draws and a forward pass: try again, unload another adapter, or lower --max-batch-tokens"
            ) from exc
        return handle

    async def forget(self, handle: AdapterHandle) -> None:
        """Implement Engine."""
        self._handles.remove(handle)
        await self._scheduler.run(partial(self._loaded_prefixes().forget, handle.reading))

    async def probe(self) -> None:
        """Implement Engine."""
        for handle in self._handles[:1]:  # any adapter tests the model
            row = await in_thread(self._packing, partial(self._probe_row, handle))
            await self._compute(partial(self._probe, handle, row))

    async def close(self) -> None:
        """Implement Engine."""
        self._packing.shutdown(wait=False, cancel_futures=True)
        self._scheduler.close()

    async def _compute(self, work: Callable[[], T]) -> T:
        """Return what work returns in the thread that computes; note whether an error of the device is its last.

        After some errors, a GPU gives every further operation of the process the same error.
        """
        try:
            return await self._scheduler.run(work)
        except torch.AcceleratorError:
            try:
                await self._scheduler.run(partial(_touch, self._loaded_base().device))
            except torch.AcceleratorError as exc:
                self.lost = str(exc).partition("\n")[0]
            raise

    def _loaded_prefixes(self) -> Prefixes:
        assert self._prefixes is not None  # set by _load_base, before any adapter is loaded
        return self._prefixes

    def _load_base(self, device: torch.device, dtype: str) -> BaseModel:
        settings = self._settings
        base = open_base(settings.base_model, device=str(device), dtype=dtype)
        if base.device.type == "cpu":  # on a GPU a pass is short, and a parked one would hold scarce memory
            for one in filter(None, (base, base.companion)):
                make_interruptible(one.model)
        self._base = base
        self._max_length = base.max_length
        self._prefixes = Prefixes(
            base.model, max_bytes=settings.prefix_cache_mib * 2**20, max_batch_tokens=settings.max_batch_tokens
        )
        return base

    def _read_adapter(self, path: Path, name: str | None) -> tuple[Adapter, AdapterHandle, PackedRow]:
        base = self._loaded_base()
        logger.info("Reading adapter %s", name or path)
        adapter, handle = read_adapter(path, name, base, self._settings, base.dtype_name)
        return adapter, handle, self._probe_row(handle)

    def _prove(self, adapter: Adapter, handle: AdapterHandle, row: PackedRow) -> None:
        attach(self._loaded_base(), adapter)
        self._probe(handle, row)
        self._loaded_prefixes().serve(handle.reading)
        self._handles.append(handle)

    def _probe_row(self, handle: AdapterHandle) -> PackedRow:
        """Return a short question with the adapter's choices, as a test row.

        Raises:
            AdapterError: if the row exceeds the tokens of a forward pass, or has a token without an embedding.
        """
        row, most = probe_row(self._loaded_base(), handle, self._max_length), self._settings.max_batch_tokens
        warn_of_shadowed(handle, row)
        if (unknown := self._unknown_token(row)) is not None:
            raise AdapterError(
                f"got adapter {handle.name!r}, whose prompt has the token {unknown!r}, which the base model has no "
                "embedding of, expected tokens that it knows: mend the template"
            )
        if row.n_tokens > most:
            raise AdapterError(
                f"got adapter {handle.name!r}, whose template and choices take {row.n_tokens} tokens with a short "
                f"question, expected at most {most}: shorten them, or raise --max-batch-tokens"
            )
        return row

    def _probe(self, handle: AdapterHandle, row: PackedRow) -> None:
        """Run one forward pass with the draws of the adapter's bank that fit into it.

        Raises:
            NumericalError: if a probability is not finite.
        """
        fitting = max(1, self._settings.max_batch_tokens // row.n_tokens)
        job = Job(handle, row, min(handle.bank.n_samples, fitting), seed=None, stop=None)
        self._score_what_fits([job], Control(), notice=False)

    def _score_under(self, control: Control, jobs: Sequence[Job]) -> list[Outcome]:
        with checkpoints(partial(self._scheduler.checkpoint, control)):
            return self._score_what_fits(jobs, control)

    def _score_what_fits(self, jobs: Sequence[Job], control: Control, *, notice: bool = True) -> list[Outcome]:
        """Score jobs, and halve the batch while the device runs out of memory.

        Cached prefixes are dropped first, and no prefix is cached in the retries.
        """
        try:
            return self._score(jobs, control, notice=notice)
        except torch.OutOfMemoryError:
            if not self._loaded_prefixes().clear() and len(jobs) == 1:
                raise
        logger.warning("The device has too little memory for %d inputs at once; lower --max-batch-tokens", len(jobs))
        torch.cuda.empty_cache()  # does nothing without a GPU
        if len(jobs) == 1:
            return self._score(jobs, control, notice=False)
        middle = len(jobs) // 2
        halves = (jobs[:middle], jobs[middle:])
        return [found for half in halves for found in self._score_what_fits(half, control, notice=False)]

    def _score(self, jobs: Sequence[Job], control: Control, *, notice: bool = True) -> list[Outcome]:
        """Return the outcome of each job, under all of its S draws or enough draws for its decision."""
        by_place: dict[int, Outcome] = {}
        on_processor = self._loaded_base().device.type == "cpu"  # on a GPU, short passes take as long as longer ones
        prefixes = self._loaded_prefixes()
        for prefix, after in prefixes.split(jobs, notice=notice).items():
            cached = dict(zip(after, prefixes.cached_tokens(prefix, [jobs[place] for place in after]), strict=True))
            groups = of_similar_length([jobs[place] for place in after]) if on_processor else [range(len(after))]
            for group in groups:
                places = [after[k] for k in group]
                found = self._score_after(
                    prefix, [jobs[place] for place in places], control, [cached[place] for place in places]
                )
                by_place |= dict(zip(places, found, strict=True))
        return [by_place[place] for place in range(len(jobs))]

    def _score_after(
        self, prefix: AnyPrefix | None, jobs: Sequence[Job], control: Control, cached: Sequence[int]
    ) -> list[Outcome]:
        """Return the outcomes of jobs with a common prefix; unwanted jobs get no further draws.

        Args:
            prefix: the prefix, None for none.
            jobs: the jobs.
            control: see `Engine.run`.
            cached: tokens of the prefix that count as cached for each job.
        """
        checkpoint()
        base = self._loaded_base()
        if jobs[0].kind == "head":
            outcomes = head_outcomes(base, prefix, jobs, self._settings.max_batch_tokens)
            return [replace(found, cached_tokens=tokens) for found, tokens in zip(outcomes, cached, strict=True)]
        n_samples = jobs[0].n_samples
        adapters = {draws_key(job): job for job in jobs}
        owners = list(adapters)
        seen = [torch.empty(0, job.row.n_choices) for job in jobs]
        branches = Branches(
            base.model,
            [job.row for job in jobs],
            [_lora(draws_of(job, base.device)) for job in between(adapters.values())],
            [owners.index(draws_key(job)) for job in jobs],
            prefix,
        )
        waiting = list(range(len(jobs)))
        stops = looks(n_samples) if any(job.stop is not None for job in jobs) else [n_samples]
        for start, stop in pairwise([0, *stops]):
            log_probs = branches.score(waiting, start, stop, max_batch_tokens=self._settings.max_batch_tokens).cpu()
            for b, of_row in zip(waiting, log_probs.unbind(1), strict=True):
                probs = probabilities(jobs[b], of_row[:, : jobs[b].row.n_choices], f"{base.device} in {base.dtype}")
                seen[b] = torch.cat([seen[b], probs])
            waiting, done = _still_waiting(jobs, seen, waiting, control), waiting
            if not waiting:
                break
            for b in set(done) - set(waiting):
                if draws_suffice(jobs[b], seen[b]):
                    control.finished(jobs[b], Outcome(seen[b], cached_tokens=cached[b]))
        known = familiarities(base, prefix, jobs)
        return [Outcome(*parts) for parts in zip(seen, known, cached, strict=True)]


def _still_waiting(jobs: Sequence[Job], seen: Sequence[Tensor], waiting: Sequence[int], control: Control) -> list[int]:
    """Return the jobs that need more draws, and report the unwanted ones among them to the control as dropped."""
    needed = [b for b in waiting if not draws_suffice(jobs[b], seen[b])]
    wanted = [b for b in needed if control.wants(jobs[b])]
    for b in set(needed) - set(wanted):
        control.dropped(jobs[b])
    return wanted


def _lora(draws: Draws | HeadDraws) -> Draws:
    """Return the draws of the LoRA factors: one draw below a head."""
    return draws.lora if isinstance(draws, HeadDraws) else draws


def _touch(device: torch.device) -> None:
    """Compute a number on a device and read it."""
    torch.zeros(1, device=device).add_(1).item()
