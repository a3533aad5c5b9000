"""Trained weights and probabilities on disk, so that a killed run goes on where it was.

Safetensors files, each written whole under another name first.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from blora.posterior.draws import Draws, Factors

__all__ = ["Trained", "cached", "load_trained", "save_trained"]


@dataclass(frozen=True, slots=True)
class Trained:
    """The draws that a method made of the training rows, and their cost.

    Attributes:
        draws: S draws of the LoRA factors, None for the untouched base model.
        seconds: of training, with that of the weights that it started from.
        n_parameters: that were learnt or stored.
        notes: settings, and choices made on validation rows, for the record.
    """

    draws: Draws | None
    seconds: float
    n_parameters: int
    notes: dict[str, Any] = field(default_factory=dict)


def save_trained(file: Path, trained: Trained) -> None:
    """Write trained draws to a file."""
    draws = trained.draws
    tensors: dict[str, Tensor] = {}
    for name, factors in draws.factors.items() if draws is not None else ():
        tensors |= {f"{name}.A": factors.A.contiguous(), f"{name}.B": factors.B.contiguous()}
    about = asdict(Trained(None, trained.seconds, trained.n_parameters, trained.notes))
    about |= {"scaling": draws.scaling, "n_samples": draws.n_samples} if draws is not None else {"scaling": None}
    _save(file, tensors, {"about": json.dumps(about)})


def load_trained(file: Path) -> Trained:
    """Read trained draws back from a file."""
    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["about"])
    tensors = load_file(file)
    scaling = about.pop("scaling")
    if scaling is not None:
        names = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
        factors = {name: Factors(tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in names}
        about["draws"] = Draws(factors, scaling, about.pop("n_samples"))
    return Trained(**about)


def cached(file: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors from the file, or compute them and write them there."""
    if not file.is_file():
        _save(file, compute(), {})
    return load_file(file)


def _save(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, file)
