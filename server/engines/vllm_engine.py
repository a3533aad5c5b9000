"""The engine on a separate vLLM server, for base models too large for one device of this process.

Each posterior draw of a LoRA is an ordinary LoRA there, and the draws are averaged here. For an adapter with a head,
vLLM returns the states of one pass, under the LoRA below the head if there is one, and the draws are made here. The
base model's weights are also loaded here, on the CPU, to check adapters against them and to test at the start that vLLM
gives the same answers.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from blora.adapter import Adapter, attach, read_config
from blora.adapter.opening import open_base
from blora.decision.calibration import VLLM
from blora.decision.stopping import looks
from blora.errors import AdapterError, ConfigError
from blora.inference.packing import PackedRow
from blora.posterior.decision_head import Features, HeadDraws
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.loading import check_adapters, local_adapters, model_of, read_adapter, warn_of_shadowed
from blora.server.engines.outcomes import draws_suffice, outcome, probabilities
from blora.server.engines.packing_engine import PackingEngine, in_thread
from blora.server.engines.protocol import EngineUnavailableError, Job, Loaded, Outcome
from blora.server.engines.vllm_answers import Reads, VllmAnswers, is_asked_alone
from blora.server.engines.vllm_proof import Proof, answer_of, proof_of
from blora.server.engines.vllm_requests import VllmRequests
from blora.server.scheduling.control import AbandonedError, Control, UnavailableError
from blora.server.scheduling.thread_per_task import ThreadPerTask
from blora.server.settings import Settings
from blora.vllm.client import Sending, VllmClient, VllmError, VllmUnreachableError
from blora.vllm.loras import lora_name, n_loras, write_loras
from blora.vllm.states import check_readable, read_log_probs
from blora.vllm.turns import all_of

__all__ = ["VllmEngine"]

logger = logging.getLogger(__name__)

# Seconds between two looks at whether a run is still wanted, or has to give way.
LOOK_S = 0.05
# Share of the time for an answer after which a vLLM that has answered nothing is taken for one that hangs.
HANGS = 0.5
# Most proofs in a row, while further connections are opened meanwhile.
PROOFS = 3


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
        self._answers = VllmAnswers(self._vllm, self._folder)
        self._reading = ThreadPerTask(settings.adapter_load_timeout_s)
        self._served: Counter[str] = Counter()  # number of handles by digest
        self._serving: list[AdapterHandle] = []
        self._proofs: dict[AdapterHandle, Proof] = {}
        self._proved_at: dict[AdapterHandle, int] = {}  # number of connections before the last proof
        self._proving = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()

    async def load(self) -> Loaded:
        """Implement Engine."""
        disable_progress_bar()
        settings = self._settings
        check_adapters(settings)
        reading = partial(open_base, settings.base_model, device="cpu", dtype=settings.dtype)
        base = await in_thread(self._working, reading)
        if base.companion is not None:
            raise ConfigError(
                f"got the companion {base.companion.ref.id} with --engine vllm, which reads none, expected a base "
                "model alone: leave the + and what follows it out of --base-model, or serve with --engine torch"
            )
        self._base = base
        try:
            # The one token of an answer counts too.
            self._answers.base_name, most = await self._vllm.base_model()
            self._max_length = min(base.max_length, most - 1)
        except VllmError as exc:
            raise ConfigError(str(exc)) from exc
        sources = await in_thread(self._working, partial(local_adapters, settings))
        adapters = [await self.load_adapter(path, name) for path, name in sources]
        model = model_of(
            base,
            device="vllm",
            dtype=VLLM,
            max_length=self._max_length,
            runs_whole_because="vLLM runs every layer for every draw",
        )
        return Loaded(model=model, adapters=tuple(adapters))

    async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
        """Implement Engine. Once no result is wanted any more, requests in progress are cancelled."""
        under, reads = control or Control(), Reads()
        requests = VllmRequests(under, self._settings.engine_concurrency)
        work = asyncio.create_task(all_of(self._answer(job, under, requests, reads) for job in jobs))
        try:
            with _reached():
                while not (await asyncio.wait({work}, timeout=LOOK_S))[0]:
                    if not under.wants(None):
                        self._check_answers()
                        under.look()  # raises
                    await requests.give_way()
                return work.result()
        finally:
            for task in (work, *reads.values()):
                task.cancel()
            await asyncio.gather(work, *reads.values(), return_exceptions=True)

    async def load_adapter(self, path: Path, name: str | None) -> AdapterHandle:
        """Implement Engine; without a name, serve the adapter under its folder's."""
        reading = partial(self._read, path, name)
        logger.info("Reading adapter %s", name or path)
        adapter, handle = await self._reading.run(f"Reading adapter {name or path}", reading, of=path)
        try:
            await in_thread(self._working, partial(write_loras, adapter, self._loaded_base(), self._folder))
            for s in range(n_loras(handle.config)):
                await self._answers.load(adapter.digest, s)
            proof = await in_thread(self._working, partial(self._prove_here, adapter, handle))
            await self._prove(handle, proof)
        except Exception as exc:
            self._proved_at.pop(handle, None)
            await self._unload(handle)
            if isinstance(exc, OSError | VllmError):
                passing = isinstance(exc, VllmUnreachableError | OSError)  # such as a full disk
                kind = EngineUnavailableError if passing else AdapterError
                raise kind(f"vLLM cannot serve adapter {adapter.name!r}: {exc}") from exc
            raise
        self._served[handle.digest] += 1
        self._serving.append(handle)
        self._proofs[handle] = proof.short()
        return handle

    async def forget(self, handle: AdapterHandle) -> None:
        """Implement Engine. vLLM keeps the draws while a request may still need them."""
        self._serving.remove(handle)
        self._served[handle.digest] -= 1
        task = asyncio.create_task(self._release(handle))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _release(self, handle: AdapterHandle) -> None:
        await asyncio.sleep(self._settings.timeout_s)
        self._proofs.pop(handle)
        self._proved_at.pop(handle)
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
        for handle in self._serving[:1]:
            with _reached():
                await self._prove(handle, self._proofs[handle])

    async def close(self) -> None:
        """Implement Engine."""
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._vllm.close()
        self._working.shutdown(wait=False, cancel_futures=True)

    def _read(self, path: Path, name: str | None) -> tuple[Adapter, AdapterHandle]:
        """Return an adapter and its handle; raise AdapterError for a head on states that vLLM does not give."""
        if (head := read_config(path).head) is not None:
            check_readable(name or path.name, head, self._loaded_base())
        return read_adapter(path, name, self._loaded_base(), self._settings, VLLM)

    def _prove_here(self, adapter: Adapter, handle: AdapterHandle) -> Proof:
        """Return what vLLM has to answer under an adapter."""
        base = self._loaded_base()
        attach(base, adapter)
        proof = proof_of(base, handle, self._max_length)
        warn_of_shadowed(handle, proof.rows[0])
        return proof

    async def _prove(self, handle: AdapterHandle, proof: Proof) -> None:
        """Compare what vLLM answers with a proof, again while connections are opened meanwhile, a few times at most.

        Raises:
            AdapterError: if they differ by more than rounding explains.
        """
        for _ in range(PROOFS):
            before, reads = self._vllm.connections, Reads()
            found = await all_of(self._ask_once(handle, row, reads) for row in proof.rows)
            states = [states for _, states in found if states is not None]
            joined = torch.cat(states) if states else None
            proof.check([probs for probs, _ in found], joined, handle.name, self._loaded_base())
            self._proved_at[handle] = before
            if before == self._vllm.connections:
                return

    async def _prove_if_new(self, handle: AdapterHandle) -> None:
        """Prove an adapter again if connections were opened since, which a vLLM that was started again takes."""
        async with self._proving:
            proof = self._proofs.get(handle)  # None once it was unloaded for so long that nobody waits for the answer
            if proof is None or self._proved_at[handle] == self._vllm.connections:
                return
            try:
                await self._prove(handle, proof)
            except AdapterError as exc:
                raise VllmError(str(exc)) from exc

    def _check_answers(self) -> None:
        """Raise an error if vLLM has answered nothing for long, whether or not somebody still waits."""
        if self._vllm.unanswered_s > HANGS * self._settings.timeout_s:
            raise UnavailableError(f"vLLM has answered nothing for {self._vllm.unanswered_s:.0f} s")

    async def _ask_once(self, handle: AdapterHandle, row: PackedRow, reads: Reads) -> tuple[Tensor, Tensor | None]:
        """Return the recalibrated probabilities (C,) under the first draw, and the states that a head reads."""
        if handle.config.head is None:
            return answer_of(handle, row, await self._answers.log_probs(handle, row, 0, nullcontext)), None
        log_probs, features = await self._read_there(handle, row, 1, nullcontext, reads)
        return answer_of(handle, row, log_probs[0]), features.prompt

    async def _read_there(
        self, handle: AdapterHandle, row: PackedRow, n_samples: int, sending: Sending, reads: Reads
    ) -> tuple[Tensor, Features]:
        """Return log-probabilities (S, C) under the first draws of a head, and the features, from states of vLLM's."""
        draws = handle.bank.first(n_samples)
        assert isinstance(draws, HeadDraws)  # the adapter has a head
        read = await self._answers.read(handle, row, sending, reads)
        return await in_thread(self._working, partial(read_log_probs, self._loaded_base(), draws, read))

    async def _answer_by_head(self, job: Job, sending: Sending, reads: Reads) -> Outcome:
        """Return the outcome under all draws of a head, from one pass in vLLM."""
        log_probs, features = await self._read_there(job.handle, job.row, job.n_samples, sending, reads)
        await self._prove_if_new(job.handle)
        [distance] = job.handle.distances(features)
        return outcome(job, log_probs, distance, VLLM)

    async def _answer(self, job: Job, control: Control, requests: VllmRequests, reads: Reads) -> Outcome:
        """Return the outcome under all draws, or enough draws for the decision; a failure raises."""
        if job.handle.config.head is not None:
            return await self._answer_by_head(job, requests.sending, reads)  # several jobs may read one text
        row, sending = job.row, partial(requests.sending, job, alone=is_asked_alone(job.row))
        seen = torch.empty(0, row.n_choices)
        for start, stop in pairwise([0, *(looks(job.n_samples) if job.stop is not None else [job.n_samples])]):
            asked = range(start, stop)
            try:
                log_probs = await all_of(self._answers.log_probs(job.handle, row, s, sending) for s in asked)
            except AbandonedError:
                control.look()  # raises, unless others are still wanted
                control.dropped(job)
                return Outcome(seen)
            seen = torch.cat([seen, probabilities(job, torch.stack(log_probs), VLLM)])
            if draws_suffice(job, seen) or not control.wants(job):
                break
        await self._prove_if_new(job.handle)
        if draws_suffice(job, seen):
            control.finished(job, Outcome(seen))
        else:
            control.dropped(job)
        return Outcome(seen)


@contextmanager
def _reached() -> Iterator[None]:
    """Raise UnavailableError in place of the error of a vLLM that does not answer."""
    try:
        yield
    except VllmUnreachableError as exc:
        raise UnavailableError(str(exc)) from exc
