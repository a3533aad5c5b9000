"""What every engine does: with a job's draws, and before an adapter or a model is served."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

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
from blora.posterior.bank import SampleBank
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import Job, ModelInfo, Row
from blora.server.settings import Settings

__all__ = [
    "PROBE_CHOICES",
    "PROBE_PROMPT",
    "check_adapters",
    "check_draws",
    "draws_suffice",
    "handle_of",
    "in_thread",
    "longest_token",
    "model_of",
    "probabilities",
    "read_adapter",
    "warn_of_shadowed",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Any question will do to prove that a forward pass works.
PROBE_PROMPT = "Is this a question?"
PROBE_CHOICES = ("yes", "no")


async def in_thread(executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """What the work returns, done in a thread of the executor."""
    return await asyncio.get_running_loop().run_in_executor(executor, work)


def check_adapters(settings: Settings) -> None:
    """Returns if there is, or may come, an adapter to serve.

    Raises:
        ConfigError: if there is none.
    """
    if not settings.adapter_sources and settings.adapter_root is None:
        raise ConfigError(
            "no adapter is given: pass --adapters NAME=PATH, or --adapter-root FOLDER to load adapters later"
        )


def check_draws(name: str, wanted: int, cap: int) -> None:
    """Makes sure that an adapter can be asked as it wants to be, before its draws are made.

    Raises:
        ConfigError: if it wants more draws than the server allows.
    """
    if wanted > cap:
        raise ConfigError(f"got adapter {name!r} with {wanted} draws, expected at most {cap}: raise --n-samples-cap")


def read_adapter(
    path: Path, name: str | None, base: BaseModel, settings: Settings, dtype: str
) -> tuple[Adapter, AdapterHandle]:
    """Return an adapter, and how it is served, from its files alone; nothing of the base model is changed.

    Args:
        path: its folder.
        name: how requests will call it; None for its folder's name.
        base: the model it belongs to.
        settings: how much memory and how many draws it may take, and whether it may lack its calibration.
        dtype: what a calibration has to be bound to.

    Raises:
        BloraError: if it must not be served.
    """
    adapter = load_adapter(path, base, name=name, max_memory_bytes=settings.max_adapter_memory_mib * 2**20)
    check_draws(adapter.name, adapter.config.sampling.n_samples, settings.n_samples_cap)
    handle = handle_of(adapter, device=base.device, dtype=dtype, allow_uncalibrated=settings.allow_uncalibrated)
    return adapter, handle


def model_of(base: BaseModel, *, device: str, dtype: str, max_length: int, runs_whole_because: str | None) -> ModelInfo:
    """Return the description of a base model as an engine runs it; see `ModelInfo`."""
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


def draws_suffice(job: Job, probs: Tensor) -> bool:
    """Return whether draws (s, C) settle what is to be decided."""
    if job.stop is None:
        return len(probs) == job.n_samples
    return bool(settled(probs[:, None], job.n_samples, job.stop.policy, job.stop.error))


def probabilities(job: Job, log_probs: Tensor, where: str) -> Tensor:
    """(S, C) at the adapter's temperature and lapse rate, which hold for its own scoring alone.

    Args:
        job: that they are of.
        log_probs: (S, C) normalised over the choices.
        where: device and dtype, for the message.

    Raises:
        NumericalError: if one is not finite.
    """
    config = job.handle.config
    sampling = config.sampling if job.row.scoring == config.prompt.scoring else SamplingConfig()
    present = torch.ones(log_probs.shape[-1:], dtype=torch.bool)
    probs = temper(log_probs, sampling.temperature, sampling.lapse, present)
    if not bool(probs.isfinite().all()):
        raise NumericalError(
            f"got NaN or infinity from adapter {job.handle.name!r} on {where}, expected probabilities: "
            "try --dtype float32, or another adapter"
        )
    return probs


def warn_of_shadowed(handle: AdapterHandle, row: Row) -> None:
    """Log that one of an adapter's fixed choices can never win.

    Args:
        handle: the adapter.
        row: any question, packed with these choices.
    """
    if handle.config.prompt.choices is not None and row.shadowed is not None:
        longer, shorter = row.shadowed
        logger.warning(
            "Adapter %s scores choices without an end, so that %r can never beat %r: train it again, with the default "
            "--choice-end, or with other names",
            handle.name,
            longer,
            shorter,
        )


def handle_of(adapter: Adapter, *, device: torch.device, dtype: str, allow_uncalibrated: bool) -> AdapterHandle:
    """Return the adapter with its bank and its calibration.

    Args:
        adapter: as loaded.
        device: where the bank lies.
        dtype: what a calibration has to be bound to.
        allow_uncalibrated: whether to serve an adapter without its calibration where that is for another dtype or for
            earlier contents. The strictest thresholds of other dtypes still decide, but nothing is proved of them; of
            earlier contents none do.

    Raises:
        NotCalibratedError: if an adapter has been calibrated, but not for being served like this, unless allowed.
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
        policy = strictest([entry.default_level.policy() for entry in others]) or policy
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
        not_calibrated=not_calibrated,
    )


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the characters of the tokenizer's longest token, which no token of a text exceeds.

    Tokenizers of language models lose no character: where the vocabulary lacks one, its bytes are tokens. One that
    puts a single token for many unknown characters may call a text shorter than this allows for.
    """
    return max(map(len, tokenizer.get_vocab()), default=1)
