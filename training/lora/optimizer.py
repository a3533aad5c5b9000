"""AdamW with one learning rate for each kind of parameter."""

import torch
from torch import nn

from blora.errors import ConfigError
from blora.posterior.point import PointFactor
from blora.training.config import TrainConfig

__all__ = ["make_optimizer"]

MEANS = ("inducing_mean",)
INPUTS = ("Z_r", "Z_c")
# Each parameter is a standard deviation before the function that makes it positive.
SCALES = ("raw_scale", "raw_row", "raw_col", "raw_D_r", "raw_D_c", "raw_lambda")
# Module of the flow family; all its parameters learn at the rate of the means, which it moves.
NETWORK = "transform"
# Weights of a decision head above the LoRA.
HEAD = "head"


def make_optimizer(trained: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters, without weight decay, as the objective already regularises.

    Raises:
        ConfigError: if the kind of a parameter, and so its learning rate, is unknown.
    """
    rates = {
        "mean": config.learning_rate,
        "point": config.lora_learning_rate,
        "inputs": config.input_learning_rate,
        "scale": config.scale_learning_rate,
        "head": config.head_learning_rate,
    }
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    points = {id(module.weight) for module in trained.modules() if isinstance(module, PointFactor)}
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            groups["point" if id(parameter) in points else _kind(name)].append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "lr": rates[kind]} for kind, parameters in groups.items() if parameters],
        weight_decay=0.0,
    )


def _kind(name: str) -> str:
    *modules, last = name.split(".")
    if last in MEANS or NETWORK in modules:
        return "mean"
    if last in INPUTS:
        return "inputs"
    if last in SCALES:
        return "scale"
    if HEAD in modules:
        return "head"
    known = ", ".join((*MEANS, *INPUTS, *SCALES))
    raise ConfigError(
        f"got parameter {name}, which has no learning rate, expected one of {known}, or a part of `{NETWORK}` or "
        f"`{HEAD}`; add its name to its kind in training/lora/optimizer.py"
    )
