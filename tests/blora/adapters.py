"""A small adapter with a posterior away from its start, and ways to change its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blora.adapter import save_adapter
from blora.base_model import BaseModel
from blora.config import AdapterConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.disk.digests import canonical_digest
from blora.posterior.inject import default_targets, parse_layers, select_modules
from blora.posterior.posterior import Posterior
from tests.scenarios import N_LAYERS

FORMS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "diagonal": {"family": "diagonal"},
    "matrix_normal": {"family": "matrix_normal"},
    "flow": {"family": "flow"},
}


def adapter_config(base: BaseModel, layers: str = "all", **form: Any) -> AdapterConfig:
    targets = default_targets(base.model)
    small = {"rank": 3, "alpha": 7.0, "inducing_rows": 4, "inducing_cols": 5}
    return AdapterConfig(
        base_model=base.ref,
        target_modules=targets,
        modules=select_modules(base.model, targets, parse_layers(layers, N_LAYERS)),
        posterior=PosteriorConfig(**(small | form)),
        prompt=PromptConfig(template="Q: {prompt}\nA:", choices=("no", "yes"), normalization="choice"),
        sampling=SamplingConfig(n_samples=3, seed=5),
        policy={"min_confidence": 0.5},
        training={"command": "blora train", "validation": {"nll": 0.5}},
    )


def trained(config: AdapterConfig) -> Posterior:
    """A posterior away from its start: all its factors have a mean that changes the model."""
    posterior = Posterior(config.modules, config.posterior, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return posterior


def saved(path: Path, base: BaseModel, layers: str = "all", **form: Any) -> Posterior:
    config = adapter_config(base, layers, **form)
    posterior = trained(config)
    save_adapter(path, posterior, config, base)
    return posterior


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def rewrite_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def apply(file: Path) -> None:
        raw = json.loads(file.read_text())
        change(raw)
        file.write_text(json.dumps(raw))

    return apply


def sealed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """A change of a `calibration.json` that also renews its digest."""

    def apply(raw: dict[str, Any]) -> None:
        del raw["digest"]
        change(raw)
        raw["digest"] = canonical_digest(raw)

    return apply


def rewrite_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    def apply(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply
