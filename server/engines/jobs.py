"""Functions common to all engines: checking and reading adapters, and turning scores into probabilities."""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blora.adapter import Adapter, load_adapter
from blora.base_model import BaseModel
from blora.calibration_file import for_serving, read
from blora.config import SamplingConfig
from blora.decision.abstention import Policy, strictest
from blora.decision.calibration import Binding
from blora.decision.stopping import settled
from blora.decision.temperature import temper
from blora.errors import ConfigError, NotCalibratedError, NumericalError
from blora.inference.checkpoints import checkpoint
from blora.inference.packing import PackedRow
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import HeadDraws
from blora.posterior.draws import Draws
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import Job, ModelInfo, Outcome, Row

if TYPE_CHECKING:
    from blora.server.settings import Settings  # predictions without a server do without pydantic-settings

__all__ = [
    "PROBE_CHOICES",
    "PROBE_PROMPT",
    "check_adapters",
    "check_draws",
    "draws_key",
    "draws_of",
    "draws_suffice",
    "handle_of",
    "in_thread",
    "longest_token",
    "model_of",
    "of_similar_length",
    "outcome",
    "packed",
    "probabilities",
    "read_adapter",
    "shared_reading",
    "warn_of_shadowed",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Prompt of the forward pass that tests an adapter.
PROBE_PROMPT = "Is this a question?"
PROBE_CHOICES = ("yes", "no")
# Tokens that take a processor as long as the fixed part of a forward pass, which reads all weights. Measured with the
# embedded base model as 20 in float32 and 35 in bfloat16.
_PASS_TOKENS = 32


async def in_thread(executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Run a function in a thread of the executor and return its result."""
    return await asyncio.get_running_loop().run_in_executor(executor, work)


def check_adapters(settings: "Settings") -> None:
    """Raise an error if the settings name no adapter and allow loading none.

    Raises:
        ConfigError: if no adapter can ever be served.
    """
    if not settings.adapter_sources and settings.adapter_root is None:
        raise ConfigError(
            "no adapter is given: pass --adapters NAME=PATH, or --adapter-root FOLDER to load adapters later"
        )


def check_draws(name: str, wanted: int, cap: int) -> None:
    """Raise an error if an adapter's default number of draws exceeds the cap, before its draws are made.

    Raises:
        ConfigError: if the adapter has more draws than the cap.
    """
    if wanted > cap:
        raise ConfigError(f"got adapter {name!r} with {wanted} draws, expected at most {cap}: raise --n-samples-cap")


def read_adapter(
    path: Path, name: str | None, base: BaseModel, settings: "Settings", dtype: str
) -> tuple[Adapter, AdapterHandle]:
    """Read an adapter's files and return the adapter and its handle, without changing the base model.

    Args:
        path: the adapter's folder.
        name: the name to serve it under; None for the folder's name.
        base: the base model.
        settings: limits of memory and draws, and whether uncalibrated adapters are allowed.
        dtype: the dtype that the calibration has to be bound to.

    Raises:
        BloraError: if the adapter cannot be served.
    """
    adapter = load_adapter(path, base, name=name, max_memory_bytes=settings.max_adapter_memory_mib * 2**20)
    check_draws(adapter.name, adapter.config.sampling.n_samples, settings.n_samples_cap)
    handle = handle_of(adapter, device=base.device, dtype=dtype, allow_uncalibrated=settings.allow_uncalibrated)
    return adapter, handle


def model_of(base: BaseModel, *, device: str, dtype: str, max_length: int, runs_whole_because: str | None) -> ModelInfo:
    """Return the `ModelInfo` of a base model as an engine runs it."""
    return ModelInfo(
        name=base.name,
        id=base.ref.id,
        revision=base.ref.revision,
        fingerprint=base.ref.fingerprint,
        device=device,
        dtype=dtype,
        max_length=max_length,
        runs_whole_because=runs_whole_because,
    )


def draws_key(job: Job) -> tuple[str, int | None]:
    """Return the key of a job's draws: jobs of one group with equal keys share their draws."""
    return job.handle.digest, job.seed


def draws_of(job: Job, device: torch.device) -> Draws | HeadDraws:
    """Return a job's draws on a device: from the bank if it holds them, otherwise fresh ones, made between checkpoints.

    Draws nest: the first draws do not depend on the number of draws.
    """
    bank = job.handle.bank
    if job.in_bank:
        return bank.first(job.n_samples)
    seed = bank.seed if job.seed is None else job.seed
    made = SampleBank.draw(job.handle.posterior, job.handle.digest, job.n_samples, seed, checkpoint)
    return made.draws.to(device)


def packed(job: Job) -> PackedRow:
    """Return a job's row as the engine in this process packs it."""
    return cast(PackedRow, job.row)


def shared_reading(job: Job) -> tuple[Hashable, tuple[int, ...]]:
    """Return what jobs may share: a key of the jobs whose prompts a run reads alike, and the tokens of the prompt.

    Only what a head reads of a prompt is the same for all of its draws. There are no tokens for other jobs.
    """
    reads_once = job.kind == "head" and job.in_bank
    return (job.handle.reading, job.group), packed(job).prompt if reads_once else ()


def draws_suffice(job: Job, probs: Tensor) -> bool:
    """Return whether the probabilities (s, C) of the first s draws settle the job's decision."""
    if job.stop is None:
        return len(probs) == job.n_samples
    return bool(settled(probs[:, None], job.n_samples, job.stop.policy, job.stop.error))


def of_similar_length(jobs: Sequence[Job]) -> list[list[int]]:
    """Return the places of jobs in groups of similar length, so that padding costs no more than further passes.

    The rows of a group have at most 32 tokens of padding in all. A question that several adapters answer counts once.
    """
    rows = [packed(job) for job in jobs]
    groups: list[list[int]] = []
    different: set[tuple[object, ...]] = set()
    prompt = choices = total = 0  # longest parts of the different rows of the last group, and all of their tokens
    for place in sorted(range(len(rows)), key=lambda place: -rows[place].n_tokens):
        row = rows[place]
        key = row.prompt, row.continuations
        if not groups or key not in different:
            prompt, choices = max(prompt, row.prompt_tokens), max(choices, row.n_tokens - row.prompt_tokens)
            total += row.n_tokens
            if not groups or (len(different) + 1) * (prompt + choices) - total > _PASS_TOKENS:
                groups.append([])
                different.clear()
                prompt, choices, total = row.prompt_tokens, row.n_tokens - row.prompt_tokens, row.n_tokens
            different.add(key)
        groups[-1].append(place)
    return groups


def outcome(job: Job, log_probs: Tensor, distance: float | None, where: str) -> Outcome:
    """Return what log-probabilities (S, C) and the question's distance from the training rows, if known, come to.

    Raises:
        NumericalError: if a probability is not finite.
    """
    known = job.handle.p_value(distance) if distance is not None else None
    return Outcome(probabilities(job, log_probs, where), known)


def probabilities(job: Job, log_probs: Tensor, where: str) -> Tensor:
    """Return probabilities (S, C), recalibrated for the adapter's own scoring and readout.

    Args:
        job: the scored job.
        log_probs: (S, C) log-probabilities, normalised over the choices.
        where: device and dtype, for the message.

    Raises:
        NumericalError: if a probability is not finite.
    """
    config = job.handle.config
    own = job.row.scoring == config.prompt.scoring and job.row.readout == config.prompt.readout
    sampling = config.sampling if own else SamplingConfig()
    present = torch.ones(log_probs.shape[-1:], dtype=torch.bool)
    probs = temper(log_probs, sampling.temperature, sampling.lapse, present)
    if not bool(probs.isfinite().all()):
        raise NumericalError(
            f"got NaN or infinity from adapter {job.handle.name!r} on {where}, expected probabilities: "
            "try --dtype float32, or another adapter"
        )
    return probs


def warn_of_shadowed(handle: AdapterHandle, row: Row) -> None:
    """Log a warning if one of an adapter's fixed choices can never win.

    Args:
        handle: the adapter.
        row: any question packed with the adapter's choices.
    """
    if handle.config.prompt.choices is not None and row.shadowed is not None:
        longer, shorter = row.shadowed
        logger.warning(
            "Adapter %s scores choices without an end token, so that %r can never beat %r: train it again, "
            "with the default --choice-end, or with other names",
            handle.name,
            longer,
            shorter,
        )


def handle_of(adapter: Adapter, *, device: torch.device, dtype: str, allow_uncalibrated: bool) -> AdapterHandle:
    """Return the handle of an adapter, with its bank of draws and its calibration.

    Args:
        adapter: the loaded adapter.
        device: the device of the bank.
        dtype: the dtype that the calibration has to be bound to.
        allow_uncalibrated: whether to serve an adapter whose calibration is for another dtype or for earlier contents.
            The strictest thresholds of the calibrations for other dtypes then decide, without a guarantee; thresholds
            for earlier contents are ignored.

    Raises:
        NotCalibratedError: if the adapter's calibration does not hold for it as served and that is not allowed.
        AdapterError: if the calibration cannot be read.
    """
    sampling, thresholds = adapter.config.sampling, adapter.config.policy
    policy = Policy.from_mapping(thresholds) if thresholds else None
    binding = Binding.of(adapter.config, adapter_digest=adapter.digest, dtype=dtype)
    calibration, not_calibrated = None, False
    try:
        calibration = for_serving(adapter.path, binding)
    except NotCalibratedError as exc:
        if not allow_uncalibrated:
            raise
        logger.warning("Adapter %s is served without a calibration: %s", adapter.name, exc)
        not_calibrated = True
        others = [entry for entry in read(adapter.path) if entry.binding.adapter_digest == adapter.digest]
        policy = strictest([entry.policy(entry.default_level) for entry in others]) or policy
    bank = SampleBank.draw(adapter.posterior, adapter.digest, sampling.n_samples, sampling.seed)
    return AdapterHandle(
        name=adapter.name,
        digest=adapter.digest,
        config=adapter.config,
        policy=policy,
        bank=SampleBank(bank.digest, bank.seed, bank.draws.to(device)),
        posterior=adapter.posterior,
        created=int(time.time()),
        calibration=calibration,
        familiarity=adapter.familiarity.to(device) if adapter.familiarity is not None else None,
        not_calibrated=not_calibrated,
    )


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the length of the tokenizer's longest token, in characters.

    The length bounds the characters that a number of tokens can hold, because tokenizers of language models encode
    unknown characters as bytes. A tokenizer with one token for many unknown characters may exceed the bound.
    """
    return max(map(len, tokenizer.get_vocab()), default=1)
