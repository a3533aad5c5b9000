"""The settings of a training run."""

from dataclasses import dataclass
from pathlib import Path

from blora.errors import ConfigError

__all__ = ["TrainConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a posterior is fitted.

    Attributes:
        work_dir: where checkpoints go.
        epochs: passes over the training rows.
        batch_size: rows of a forward pass on each device.
        gradient_accumulation: forward passes of one optimiser step.
        learning_rate: of the means of inducing weights, in units of the prior; the peak of a linear schedule.
        lora_learning_rate: of factors without a posterior, which move in units of a weight.
        input_learning_rate: of inducing inputs.
        scale_learning_rate: of standard deviations.
        warmup: share of the steps in which the learning rate rises.
        kl_weight: 1 is the exact ELBO, below 1 a cold posterior.
        kl_warmup: share of the steps in which the KL's weight rises.
        train_draws: most posterior draws a batch is divided among.
        validation_draws: posterior draws behind the validation NLL, which is taken recalibrated.
        patience: epochs without a better validation NLL before training stops.
        seed: of initialisation, order and noise.
        resume: go on from the last checkpoint in work_dir, if there is one.
    """

    work_dir: Path
    epochs: float = 4.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float = 0.04
    lora_learning_rate: float = 1e-3
    input_learning_rate: float = 4e-3
    scale_learning_rate: float = 1e-2
    warmup: float = 0.06
    kl_weight: float = 0.01
    kl_warmup: float = 0.25
    train_draws: int = 4
    validation_draws: int = 4
    patience: int = 3
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        for name in (
            *("epochs", "batch_size", "gradient_accumulation"),
            *("learning_rate", "lora_learning_rate", "input_learning_rate", "scale_learning_rate"),
            *("train_draws", "validation_draws", "patience"),
        ):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"got {name} = {getattr(self, name)}, expected a positive number")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"got seed = {self.seed}, expected 0 to 2^32 - 1")
        for name in ("warmup", "kl_warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"got {name} = {getattr(self, name)}, expected a share of the steps, from 0 to below 1"
                )
        if not 0 <= self.kl_weight < float("inf"):
            raise ConfigError(f"got kl_weight = {self.kl_weight}, expected a number of at least 0")
