"""The adapter directory: two PEFT files hold the posterior-mean LoRA, further files the posterior and the head.

bayesian_config.json                             the settings: everything needed to use the other files
adapter_config.json, adapter_model.safetensors   the posterior-mean LoRA, which PEFT and vLLM load
posterior.safetensors                            the posterior over the LoRA
head.safetensors                                 the decision head and its posterior
familiarity.safetensors                          how familiar questions look in the head's states
README.md                                        the model card
calibration.json                                 calibrations and attempts, see `calibration_file`; not digested

An adapter has a LoRA, a head or both. Its digest is the SHA-256 of the output of `sha256sum` for the files above the
card. Writing an adapter again replaces these files and leaves every other entry of the folder alone.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from blora.adapter.base_check import check_base
from blora.adapter.calibration_file import CALIBRATION_FILE, carry_over
from blora.adapter.card import is_edited, model_card
from blora.adapter.heads import read_familiarity, read_head
from blora.adapter.lora import LORA_CONFIG_FILE, WEIGHTS_FILE, check_tensors, factor_shapes, read_tensors
from blora.adapter.peft_files import check_mean, check_peft_config, peft_config, peft_tensors
from blora.adapter.presence import ADVICE, CONFIG_FILE, UNFINISHED_FILE, how_to_finish, is_adapter
from blora.base_model import BaseModel
from blora.config import FORMAT_VERSION, AdapterConfig
from blora.decision.abstention import Policy
from blora.decision.familiarity import Familiarity, stored_bytes
from blora.disk.atomic import HIDDEN, new_folder, remove_abandoned
from blora.disk.cache import check_own
from blora.disk.files import TensorsFile, file_digest, is_present, read_json
from blora.disk.tensors import write_tensors
from blora.errors import AdapterError, BloraError, ConfigError
from blora.posterior.decision_head import HeadPosterior, head_bytes, head_shapes
from blora.posterior.inject import inject
from blora.posterior.posterior import Posterior
from blora.posterior.sizes import memory_bytes, tensor_shapes

__all__ = [
    "CARD_FILE",
    "OWN_FILES",
    "Adapter",
    "adapter_bytes",
    "adapter_digest",
    "attach",
    "check_output",
    "load_adapter",
    "new_adapter",
    "read_config",
    "save_adapter",
]

POSTERIOR_FILE = "posterior.safetensors"
CARD_FILE = "README.md"
KEPT_CARD_FILE = "README.md.before"  # an edited card, once another took its place
HEAD_FILE = "head.safetensors"
FAMILIARITY_FILE = "familiarity.safetensors"
DIGESTED = (LORA_CONFIG_FILE, WEIGHTS_FILE, CONFIG_FILE, POSTERIOR_FILE, HEAD_FILE, FAMILIARITY_FILE)
# Names of all files that an adapter may consist of.
OWN_FILES = (*DIGESTED, CARD_FILE, CALIBRATION_FILE)
OF_LORA = (LORA_CONFIG_FILE, WEIGHTS_FILE, POSTERIOR_FILE)
# Formats that can run code when they are opened.
UNSAFE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that has passed every check against its base model.

    Attributes:
        name: name of the adapter in requests.
        path: directory that the adapter was read from.
        digest: sha256:<hex> of the adapter's contents.
        config: settings of the adapter.
        posterior: posterior over the LoRA factors, or over the head above a LoRA, float32 on the CPU.
        familiarity: distance from the training rows, float32 on the CPU; None without one.
    """

    name: str
    path: Path
    digest: str
    config: AdapterConfig
    posterior: Posterior | HeadPosterior
    familiarity: Familiarity | None = None


def attach(base: BaseModel, adapter: Adapter) -> None:
    """Prepare the base model's modules for this adapter's draws; without draws the model is unchanged."""
    inject(base.model, adapter.config.modules)


def check_output(path: Path | str) -> None:
    """Raise an error unless an adapter may be written to a path.

    Raises:
        AdapterError: if the path is taken by something that is not an adapter, or by an adapter in the hub's cache, or
            this user may not write there.
    """
    path = Path(path)
    check_own(path)
    if path.exists() and not path.is_dir():
        raise AdapterError(f"got output {path}, which is a file; expected a new or an adapter's folder")
    there = next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise AdapterError(
            f"got output {path}, expected a folder in which this user may write, which {there} is not: name another, "
            "or change its permissions"
        )
    if path.is_dir() and not is_adapter(path) and any(not file.name.startswith(HIDDEN) for file in path.iterdir()):
        raise AdapterError(f"got output folder {path}, which holds other files; expected a new or an adapter's folder")
    if taken := [name for name in OWN_FILES if (path / name).is_dir()]:
        raise AdapterError(f"got folders {', '.join(taken)} in {path}, where the adapter's files go; move them away")


def save_adapter(
    path: Path | str,
    posterior: Posterior | HeadPosterior,
    config: AdapterConfig,
    base: BaseModel,
    familiarity: Familiarity | None = None,
) -> None:
    """Write an adapter directory: see `new_adapter`.

    Raises:
        AdapterError: see `check_output`.
    """
    with new_adapter(path) as partial:
        if isinstance(posterior, HeadPosterior):
            head = {name: tensor.contiguous() for name, tensor in posterior.head.tensors().items()}
            head |= {name: tensor.half() for name, tensor in head.items() if name.endswith("directions")}
            write_tensors(partial / HEAD_FILE, head)
        if familiarity is not None:
            tensors = {name: tensor.contiguous() for name, tensor in familiarity.tensors().items()}
            write_tensors(partial / FAMILIARITY_FILE, tensors)
        if config.modules:
            _save_lora(partial, posterior.lora if isinstance(posterior, HeadPosterior) else posterior, config, base)
        (partial / CONFIG_FILE).write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
        (partial / CARD_FILE).write_text(model_card(config, Path(path).resolve().name), encoding="utf-8")


@contextmanager
def new_adapter(path: Path | str) -> Iterator[Path]:
    """Yield a hidden folder for an adapter's files, which are moved to a path when the context ends without an error.

    A new folder appears complete or not at all. In the folder of an earlier adapter its files are replaced, of its
    calibration.json the record of asks stays (see `calibration_file.carry_over`), and so does everything else. Until
    the last file is in place the folder has no config, and `load_adapter` refuses it.

    Raises:
        AdapterError: see `check_output`.
    """
    check_output(path)
    with new_folder(Path(path).resolve(), place=_put) as partial:  # a link to a folder stays, the folder is written
        yield partial


def _save_lora(folder: Path, posterior: Posterior, config: AdapterConfig, base: BaseModel) -> None:
    tensors = {_disk_name(key): tensor.contiguous() for key, tensor in posterior.state_dict().items()}
    write_tensors(folder / POSTERIOR_FILE, tensors)
    with torch.no_grad():
        mean = posterior.mean()
    write_tensors(folder / WEIGHTS_FILE, peft_tensors(mean))
    peft_config(config, base).save_pretrained(str(folder))


def _put(new: Path, folder: Path) -> None:
    """Move the files of a complete adapter into the adapter's folder.

    Files are replaced one by one rather than the folder as a whole, for two reasons: the owner's other files (.git,
    LICENSE, links, nested folders) are never moved, so no crash can misplace them; and the folder exists at every
    moment, since a watching server would unload the adapter of a missing folder. A crash half-way leaves a folder
    without a config, never a mix that loads; the old config and all new files still exist, in the folder and in the
    hidden one inside it, and `read_config` tells how to finish.
    """
    if not folder.exists():
        new.replace(folder)
        return
    carry_over(folder, new, adapter_digest(new))
    _keep_edited_card(folder)
    config, unfinished = folder / CONFIG_FILE, folder / UNFINISHED_FILE
    if config.exists():
        config.replace(unfinished)
    else:
        unfinished.touch()
    files = (*(name for name in OWN_FILES if name != CONFIG_FILE), CONFIG_FILE)  # the config last
    for name in files:
        if (new / name).exists():
            (new / name).replace(folder / name)
        else:  # a file that only the earlier adapter had
            (folder / name).unlink(missing_ok=True)
    unfinished.unlink()
    new.rmdir()
    remove_abandoned(folder)


def _keep_edited_card(folder: Path) -> None:
    """Move a card that somebody has edited out of the way of a new one."""
    card, kept = folder / CARD_FILE, folder / KEPT_CARD_FILE
    if not (card.is_file() and (folder / CONFIG_FILE).is_file()):  # without a config, an interrupted save has done it
        return
    try:
        if not is_edited(card.read_text(encoding="utf-8"), read_config(folder)):
            return
        why = "was edited"
    except (BloraError, UnicodeDecodeError):
        why = "may have been edited"
    card.replace(kept)
    logger.warning("the card in %s %s: it is now %s, beside a new one", folder, why, KEPT_CARD_FILE)


def load_adapter(
    path: str | Path, base: BaseModel, *, name: str | None = None, max_memory_bytes: int | None = None
) -> Adapter:
    """Read an adapter directory and check that it is complete and belongs to the base model.

    The headers of the tensor files are compared with the config before any tensor is created, so a config cannot make
    the process allocate more memory than the files contain.

    Args:
        path: the directory.
        base: the model that the adapter must have been trained on.
        name: name of the adapter in requests; the directory's name by default.
        max_memory_bytes: limit for the memory of the posterior and the adapter's own draws; None for no limit.

    Raises:
        AdapterError: for a missing or unsafe file, one that is not regular, an unknown version, another base model,
            more memory than allowed, tensors that are missing, match no module, have another shape or are not finite,
            PEFT weights that are not the posterior's mean, or files that were replaced during the call.
    """
    folder = Path(path)
    files = _files(folder)
    digest = _digest(folder, files)
    config = read_config(folder)
    check_base(config, base)
    _check_memory(config, folder, max_memory_bytes)
    lora = _read_lora(folder, config, base) if config.modules else Posterior({}, config.posterior, seed=0)
    posterior = HeadPosterior(read_head(folder / HEAD_FILE, config, base), lora) if config.head is not None else lora
    familiarity = read_familiarity(folder / FAMILIARITY_FILE, config) if config.familiarity is not None else None
    if _files(folder) != files or _digest(folder, files) != digest:
        raise AdapterError(f"got adapter {folder}, whose files were replaced while they were read; load it again")
    return Adapter(name or folder.resolve().name, folder, digest, config, posterior, familiarity)


def adapter_digest(folder: Path) -> str:
    """Return the digest sha256:<hex> of the adapter in a folder, which needs no base model.

    Raises:
        AdapterError: if a file is missing, unsafe or unreadable, or the config is invalid.
    """
    return _digest(folder, _files(folder))


def _read_lora(folder: Path, config: AdapterConfig, base: BaseModel) -> Posterior:
    tensors, weights = (TensorsFile(folder / file, advice=ADVICE) for file in (POSTERIOR_FILE, WEIGHTS_FILE))
    shapes = ((_disk_name(key), shape) for key, shape in tensor_shapes(config.modules, config.posterior))
    check_tensors(tensors, shapes)
    check_tensors(weights, factor_shapes(config.modules, config.posterior.rank))
    posterior = _posterior(config, tensors)
    check_peft_config(folder / LORA_CONFIG_FILE, config, base)
    check_mean(weights, posterior)
    return posterior


def _files(folder: Path) -> tuple[str, ...]:
    """Return the names of the digested files that an adapter's settings require, and check that they exist."""
    config = read_config(folder)
    if unsafe := sorted(file.name for file in folder.rglob("*") if file.suffix.lower() in UNSAFE_SUFFIXES):
        raise AdapterError(f"got {', '.join(unsafe)} in adapter {folder}, expected safetensors only; remove the rest")
    absent = (
        *(() if config.modules else OF_LORA),
        *(() if config.head is not None else (HEAD_FILE,)),
        *(() if config.familiarity is not None else (FAMILIARITY_FILE,)),
    )
    files = tuple(name for name in DIGESTED if name not in absent)
    _check_present(folder, files)
    return files


def _check_present(folder: Path, files: Sequence[str]) -> None:
    if missing := [name for name in files if not is_present(folder / name)]:
        raise AdapterError(f"got adapter {folder} without {', '.join(missing)}; expected all of {', '.join(files)}")


def read_config(folder: Path) -> AdapterConfig:
    """Return the settings of the adapter in a folder.

    Raises:
        AdapterError: if the folder or its config is missing, as in a write that was interrupted, or the config is
            invalid.
    """
    if not folder.is_dir():
        raise AdapterError(f"got adapter {folder}, expected an existing directory")
    file = folder / CONFIG_FILE
    if not is_present(file) and is_present(folder / UNFINISHED_FILE):
        raise AdapterError(how_to_finish(folder.resolve()))
    _check_present(folder, (CONFIG_FILE,))
    raw = read_json(file, advice=ADVICE)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        earlier = isinstance(version, int) and version < FORMAT_VERSION
        advice = "train the adapter again with this version of blora" if earlier else "upgrade blora or retrain"
        raise AdapterError(f"got format_version {version!r} in {file}, expected {FORMAT_VERSION}; {advice}")
    try:
        text = json.dumps(raw, allow_nan=False)
    except ValueError as exc:
        raise AdapterError(f"got {file} with a number that is not finite, expected finite ones; {ADVICE}") from exc
    try:
        config = AdapterConfig.from_json(text)
        if config.policy is not None:
            Policy.from_mapping(config.policy)
    except ConfigError as exc:
        raise AdapterError(f"{file}: {exc}") from exc
    return config


def adapter_bytes(config: AdapterConfig, n_samples: int) -> int:
    """Return the most memory of an adapter's posterior, familiarity and `n_samples` draws, in bytes."""
    needed = memory_bytes(config.modules, config.posterior, n_samples)
    if config.head is not None:
        needed += head_bytes(head_shapes(config.head, config.prompt), n_samples)
    if config.familiarity is not None:
        needed += 4 * stored_bytes(config.familiarity)  # in float32, on the CPU and on the device
    return needed


def _check_memory(config: AdapterConfig, folder: Path, most: int | None) -> None:
    needed = adapter_bytes(config, config.sampling.n_samples)
    if most is not None and needed > most:
        raise AdapterError(
            f"got adapter {folder}, whose posterior and {config.sampling.n_samples} draws take {needed / 2**20:.0f} "
            f"MiB of memory, expected at most {most / 2**20:.0f}; train it smaller, or raise --max-adapter-memory-mib"
        )


def _posterior(config: AdapterConfig, file: TensorsFile) -> Posterior:
    """Return the posterior that a config describes, with the tensors of a file."""
    try:
        posterior = Posterior(config.modules, config.posterior, seed=0)
    except ConfigError as exc:
        raise AdapterError(f"{CONFIG_FILE}: {exc}; {ADVICE}") from exc
    expected = {_disk_name(key): (key, tensor) for key, tensor in posterior.state_dict().items()}
    tensors = read_tensors(file, {disk: tensor for disk, (_, tensor) in expected.items()})
    posterior.load_state_dict({key: tensors[disk] for disk, (key, _) in expected.items()})
    return posterior.eval().requires_grad_(False)


def _digest(folder: Path, files: Sequence[str]) -> str:
    lines = [f"{file_digest(folder / name, advice=ADVICE)}  {name}\n" for name in files]
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def _disk_name(key: str) -> str:
    """Return `A.model/layers/0/q_proj.Z_r` of the state dict as `model.layers.0.q_proj.A.Z_r`."""
    side, module, rest = key.split(".", 2)
    return f"{module.replace('/', '.')}.{side}.{rest}"
