"""Loading of adapters for any engine: folders, checks, handles, and the question that tests them."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from blora.adapter import Adapter, load_adapter
from blora.adapter.calibration_file import for_serving, read_calibrations
from blora.base_model import BaseModel
from blora.decision.abstention import Policy, strictest
from blora.decision.calibration import Binding
from blora.errors import ConfigError, NotCalibratedError
from blora.hub.fetch import local_folder
from blora.inference.packing import PackedRow, pack
from blora.posterior.bank import SampleBank
from blora.scores import SCORES, TOLERANCE
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import ModelInfo

if TYPE_CHECKING:
    from blora.server.settings import Settings  # predictions without a server do without pydantic-settings

__all__ = [
    "check_adapters",
    "check_draws",
    "handle_of",
    "idle_familiarity",
    "local_adapters",
    "longest_token",
    "model_of",
    "probe_row",
    "read_adapter",
    "warn_of_shadowed",
]

logger = logging.getLogger(__name__)


def check_adapters(settings: "Settings") -> None:
    """Raise an error if the settings name no adapter and allow loading none.

    Raises:
        ConfigError: if no adapter can ever be served.
    """
    if not settings.adapter_sources and settings.adapter_root is None:
        raise ConfigError(
            "no adapter is given: pass --adapters NAME=PATH, or --adapter-root FOLDER to load adapters later"
        )


def local_adapters(settings: "Settings") -> list[tuple[Path, str | None]]:
    """Return each adapter's folder and the name to serve it under, None for the folder's; fetch those of the hub.

    Raises:
        AdapterError: if an adapter of the hub cannot be fetched.
    """
    return [(local_folder(source.path), source.name) for source in settings.adapter_sources]


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


def handle_of(adapter: Adapter, *, device: torch.device, dtype: str, allow_uncalibrated: bool) -> AdapterHandle:
    """Return the handle of an adapter, with its bank of draws and its calibration.

    Args:
        adapter: the loaded adapter.
        device: the device of the bank.
        dtype: the dtype that the calibration has to be bound to.
        allow_uncalibrated: whether to serve an adapter whose calibration is for another dtype or for earlier contents.
            The strictest thresholds of the calibrations for other dtypes then decide, without a guarantee, the one on
            the familiarity among the reference rows of its own gate; thresholds for earlier contents are ignored.

    Raises:
        NotCalibratedError: if the adapter's calibration does not hold for it as served and that is not allowed.
        AdapterError: if the calibration cannot be read.
    """
    sampling, thresholds = adapter.config.sampling, adapter.config.policy
    policy = Policy.from_mapping(thresholds) if thresholds else None
    binding = Binding.of(adapter.config, adapter_digest=adapter.digest, dtype=dtype)
    calibration, gate, not_calibrated = None, None, False
    try:
        calibration = for_serving(adapter.path, binding)
    except NotCalibratedError as exc:
        if not allow_uncalibrated:
            raise
        logger.warning("Adapter %s is served without a calibration: %s", adapter.name, exc)
        not_calibrated = True
        others = [entry for entry in read_calibrations(adapter.path) if entry.binding.adapter_digest == adapter.digest]
        policy = strictest([entry.policy(entry.default_level) for entry in others]) or policy
        gates = [entry.gate for entry in others if entry.gate is not None]
        gate = max(gates, key=lambda one: (one.min_familiarity, -one.distance), default=None)
    bank = SampleBank.draw(adapter.posterior, adapter.digest, sampling.n_samples, sampling.seed)
    handle = AdapterHandle(
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
        gate=gate,
    )
    if calibration is None and policy is not None:
        _warn_of_draws(adapter, policy)
        _warn_of_idle_familiarity(handle, policy)
    return handle


def idle_familiarity(policy: Policy, handle: AdapterHandle) -> str | None:
    """Return what is wrong with a limit of the familiarity that no question of an adapter can fail; None for nothing.

    A limit of 0 asks for no question to be withheld.
    """
    limit, least = policy.min_familiarity, handle.least_familiarity
    if not limit or least is None or SCORES["familiarity"].fails(least, limit):
        return None
    n = round(1 / least) - 1
    return (
        f"got min_familiarity {limit:g} with {n} reference rows, expected more than {least + TOLERANCE:.6g}, because "
        f"no familiarity among {n} rows is below 1 / {n + 1}: raise it, set it to 0 to withhold nothing as "
        "unfamiliar, or bring more reference rows with `blora familiarize` or `blora calibrate`"
    )


def _warn_of_draws(adapter: Adapter, policy: Policy) -> None:
    """Log a warning if an adapter has too few draws that differ for its own policy."""
    config = adapter.config
    differ = config.head is not None or config.posterior.method != "lora"
    try:
        policy.check_draws(config.sampling.n_samples if differ else 1)
    except ConfigError as exc:
        logger.warning("Adapter %s refuses every question that brings no policy: %s", adapter.name, exc)


def _warn_of_idle_familiarity(handle: AdapterHandle, policy: Policy) -> None:
    """Log a warning if no question can be less familiar than an adapter's own policy asks."""
    if (fault := idle_familiarity(policy, handle)) is not None:
        logger.warning("Adapter %s withholds no question as unfamiliar: %s", handle.name, fault)


def probe_row(
    base: BaseModel, handle: AdapterHandle, max_length: int, question: str = "Is this a question?"
) -> PackedRow:
    """Return a short question with the adapter's choices, as a test row of at most `max_length` tokens."""
    return pack(
        base.tokenizer,
        prompt=question,
        choices=handle.config.prompt.choices or ("yes", "no"),
        config=handle.config.prompt,
        max_length=max_length,
        encoder=base.is_encoder,
    )


def warn_of_shadowed(handle: AdapterHandle, row: PackedRow) -> None:
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


def model_of(base: BaseModel, *, device: str, dtype: str, max_length: int, runs_whole_because: str | None) -> ModelInfo:
    """Return the `ModelInfo` of a base model as an engine runs it."""
    return ModelInfo(
        name=base.name,
        id=base.ref.id,
        revision=base.ref.revision,
        fingerprint=base.ref.fingerprint,
        companion=base.companion.ref.id if base.companion is not None else None,
        device=device,
        dtype=dtype,
        max_length=max_length,
        longest_token=longest_token(base.tokenizer),
        runs_whole_because=runs_whole_because,
    )


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the length of the tokenizer's longest token, in characters.

    The length bounds the characters that a number of tokens can hold, because tokenizers of language models encode
    unknown characters as bytes. A tokenizer with one token for many unknown characters may exceed the bound.
    """
    return max(map(len, tokenizer.get_vocab()), default=1)
