"""The optimiser: AdamW with a learning rate for each kind of parameter."""

import torch
from torch import nn

from blora.posterior.point import PointFactor
from blora.training.config import TrainConfig

__all__ = ["make_optimizer"]

INPUTS = ("Z_r", "Z_c")
# What is kept in the log or the inverse softplus of a standard deviation.
SCALES = ("raw_scale", "raw_row", "raw_col", "raw_D_r", "raw_D_c", "raw_lambda", "G")


def make_optimizer(posterior: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW without weight decay (the KL stands for it) over whatever of a posterior learns."""
    rates = {
        "mean": config.learning_rate,
        "point": config.lora_learning_rate,
        "inputs": config.input_learning_rate,
        "scale": config.scale_learning_rate,
    }
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    points = {id(module.weight) for module in posterior.modules() if isinstance(module, PointFactor)}
    for name, parameter in posterior.named_parameters():
        if parameter.requires_grad:
            groups["point" if id(parameter) in points else _kind(name)].append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rates[kind]} for kind, parameters in groups.items() if parameters],
        weight_decay=0.0,
    )


def _kind(name: str) -> str:
    last = name.rpartition(".")[2]
    return "inputs" if last in INPUTS else "scale" if last in SCALES else "mean"
