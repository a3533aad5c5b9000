"""The posterior's mean as PEFT's two files: what PEFT reads from them, and the checks that they are that mean."""

from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from blora.adapter.lora import read_tensors, tensor_name
from blora.base_model import BaseModel
from blora.config import AdapterConfig
from blora.disk.files import TensorsFile, read_json
from blora.errors import AdapterError, NumericalError
from blora.posterior.draws import Draws
from blora.posterior.inject import layer_index, n_layers_of
from blora.posterior.layer import LoraLinear
from blora.posterior.posterior import Posterior

__all__ = ["check_mean", "check_peft_config", "peft_config", "peft_tensors"]

# Settings that determine the update that PEFT computes from the weights.
PEFT_SETTINGS = (
    *("peft_type", "r", "lora_alpha", "target_modules", "layers_to_transform", "fan_in_fan_out"),
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "exclude_modules"),
)
# Largest allowed difference between PEFT's weights and the posterior's mean: float32 rounding on another processor.
MEAN_TOLERANCE = 1e-4


def peft_tensors(draw: Draws) -> dict[str, Tensor]:
    """Return the first draw of several, or a mean, under PEFT's tensor names."""
    tensors = {}
    for name, factors in draw.factors.items():
        tensors[tensor_name(name, "A")] = factors.A[0].contiguous()
        tensors[tensor_name(name, "B")] = factors.B[0].contiguous()
    return tensors


def peft_config(config: AdapterConfig, base: BaseModel) -> LoraConfig:
    """Return PEFT's settings for the posterior's mean, or for a draw."""
    layers = sorted({index for name in config.modules if (index := layer_index(name)) is not None})
    whole = len(layers) == n_layers_of(base.model)
    first = base.model.get_submodule(next(iter(config.modules)))
    wrapped = first.base if isinstance(first, LoraLinear) else first
    return LoraConfig(
        task_type="FEATURE_EXTRACTION" if base.is_encoder else "CAUSAL_LM",
        base_model_name_or_path=config.base_model.id,
        revision=config.base_model.revision,
        r=config.posterior.rank,
        lora_alpha=config.posterior.alpha,  # type: ignore[arg-type]  # alpha need not be an integer
        lora_dropout=0.0,
        target_modules=list(config.target_modules),
        layers_to_transform=None if whole else layers,
        fan_in_fan_out=not isinstance(wrapped, torch.nn.Linear),
        inference_mode=True,
    )


def check_peft_config(file: Path, config: AdapterConfig, base: BaseModel) -> None:
    """Check that PEFT, under its config, computes the posterior's mean.

    Raises:
        AdapterError: if a setting that determines the update differs.
    """
    found = read_json(file, advice="restore it or train again")
    expected = peft_config(config, base).to_dict()  # type: ignore[no-untyped-call]
    for name in PEFT_SETTINGS:
        wanted, got = (_plain(values.get(name)) for values in (expected, found if isinstance(found, dict) else {}))
        if wanted != got:
            raise AdapterError(f"got {name} = {got!r} in {file}, expected {wanted!r}; restore the file or train again")


def _plain(value: object) -> object:
    """Return a setting as JSON would restore it, with sets as sorted lists."""
    return sorted(value) if isinstance(value, set | list) else getattr(value, "value", value)


def check_mean(file: TensorsFile, posterior: Posterior) -> None:
    """Check that PEFT's weights are the posterior's mean.

    Raises:
        AdapterError: if they differ by more than rounding, or the posterior has no finite mean.
    """
    try:
        expected = peft_tensors(posterior.mean())
    except NumericalError as exc:
        raise AdapterError(f"got a posterior without a mean ({exc}); train again") from exc
    for name, tensor in read_tensors(file, expected).items():
        if not bool(expected[name].isfinite().all()):
            raise AdapterError(f"got a posterior whose mean of {name} is not finite; train again")
        difference = (tensor.float() - expected[name]).abs().max().item()
        if difference > MEAN_TOLERANCE * max(1.0, expected[name].abs().max().item()):
            raise AdapterError(
                f"got {name} in {file.file.name} off the posterior's mean by {difference:.2g}; "
                "the two files come from different adapters"
            )
