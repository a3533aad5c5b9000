"""The identity of a base model: a digest of its published weights, wherever they came from."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from blora.posterior.layer import LoraLinear

__all__ = ["digest_of_files", "fingerprint"]

# Values of each tensor that the digest covers.
N_VALUES = 8


def fingerprint(model: PreTrainedModel) -> str:
    """Return a digest that identifies a model's published weights, independent of the folder they came from.

    The digest covers every parameter's name and shape, and a few of its values rounded to bfloat16. The digest
    distinguishes models but does not protect against forgery. A release of transformers that renames or fuses
    parameters changes the digest, but not the revision of a `BaseModelRef`.
    """
    return _digest(_original_parameters(model))


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        flat = tensor.detach().reshape(-1)
        picks = torch.linspace(0, flat.numel() - 1, min(N_VALUES, flat.numel()), dtype=torch.float64)
        values = flat[picks.long().to(flat.device)].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}{values.tolist()}".encode())
    return f"sha256:{digest.hexdigest()}"


def digest_of_files(folder: Path) -> str | None:
    """Return the digest of the tensors in a folder's safetensors, under their published names.

    The result equals the `fingerprint` if transformers keeps these names, and is None without safetensors files.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:  # maps the file: only the sampled values are read
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # safe_open is not a dictionary
    return _digest(sorted(tensors.items())) if tensors else None


def _original_parameters(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters under their names before modules were wrapped in `LoraLinear`."""
    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    parameters = []
    for name, parameter in model.named_parameters():
        owner = next((w for w in wrapped if name.startswith(f"{w}.base.")), None)
        parameters.append((name.replace(f"{owner}.base.", f"{owner}.") if owner else name, parameter))
    return sorted(parameters, key=lambda item: item[0])
