"""The LoRAs that vLLM is given for an adapter: one for each draw, or the one below a head."""

from pathlib import Path

from blora.adapter import Adapter
from blora.adapter.export import export_below, export_draws
from blora.base_model import BaseModel
from blora.config import AdapterConfig
from blora.errors import AdapterError

__all__ = ["lora_folder", "lora_name", "n_loras", "write_loras"]


def n_loras(config: AdapterConfig) -> int:
    """Return the number of LoRAs of an adapter: one for each draw of the bank, and below a head one or none."""
    if config.head is None:
        return config.sampling.n_samples
    return 1 if config.modules else 0


def lora_name(digest: str, s: int) -> str:
    """Return the name of a LoRA in vLLM, which contains the adapter's digest and so identifies the contents."""
    return f"{digest.removeprefix('sha256:')[:24]}-{s:03d}"


def lora_folder(root: Path, digest: str, s: int) -> Path:
    """Return the folder of a LoRA, which vLLM reads."""
    return _folder(root, digest) / f"draw-{s:03d}"


def write_loras(adapter: Adapter, base: BaseModel, root: Path) -> None:
    """Write an adapter's LoRAs as folders, unless they exist; other processes may write them at the same time.

    Raises:
        OSError: if they cannot be written.
    """
    folder, config = _folder(root, adapter.digest), adapter.config
    if folder.is_dir() or not n_loras(config):
        return
    try:
        if config.head is not None:
            export_below(adapter, base, folder)
        else:
            export_draws(adapter, base, folder, config.sampling.n_samples)
    except (OSError, AdapterError):
        if not folder.is_dir():
            raise


def _folder(root: Path, digest: str) -> Path:
    return root / digest.removeprefix("sha256:")
