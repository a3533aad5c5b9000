"""The settings of a training run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from blora.config import PromptConfig
from blora.errors import ConfigError

__all__ = [
    "CACHE_GIB",
    "HEAD_SCALES",
    "NEW_PROMPT",
    "N_SAMPLES",
    "N_SAMPLES_HEAD",
    "N_SAMPLES_TUNED",
    "SCALES",
    "TOLERANCE_NATS",
    "TRACKERS",
    "HeadChoice",
    "TrainConfig",
]

T = TypeVar("T")

# Limit for the cached output of the frozen layers, where no TrainConfig sets another.
CACHE_GIB = 16.0
# How a new adapter scores; `PromptConfig()` scores the bare base model, without an end of choices.
NEW_PROMPT = PromptConfig(choice_end="newline")
# Draws of a trained LoRA posterior, and of an adapter made from a LoRA.
N_SAMPLES, N_SAMPLES_TUNED = 16, 8
# Draws of a decision head, which take one forward pass together.
N_SAMPLES_HEAD = 64
# Factors to try on a posterior's standard deviations, and the excess over the best NLL at which a wider one still wins.
SCALES = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)
TOLERANCE_NATS = 0.005
# The same factors for the Laplace approximation of a head, which is too wide for few rows, and by far for many labels.
HEAD_SCALES = (0.01, 0.03, 0.1, 0.17, 0.3, 0.42, 0.55, 0.71, 1.0)
HeadChoice = Literal["auto", "none", "linear", "pointer"]
TRACKERS = ("none", "tensorboard", "wandb", "mlflow")


def _setting(default: T, about: str) -> T:
    """Return a field with its help as metadata, which `python -OO` keeps, unlike docstrings."""
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings for fitting a posterior; each field's `help` is also the help of its flag of `blora train`."""

    work_dir: Path = field(metadata={"help": "where checkpoints go"})
    epochs: float = _setting(4.0, "passes over the training rows")
    batch_size: int = _setting(8, "rows per forward pass on each device")
    gradient_accumulation: int = _setting(1, "forward passes per optimiser step")
    learning_rate: float = _setting(
        0.04, "peak learning rate of the inducing weights' means, in units of the prior standard deviation"
    )
    lora_learning_rate: float = _setting(1e-3, "peak learning rate of the plain LoRA factors, which have no posterior")
    input_learning_rate: float = _setting(4e-3, "peak learning rate of the inducing inputs")
    scale_learning_rate: float = _setting(1e-2, "peak learning rate of the posterior's standard deviations")
    head_learning_rate: float = _setting(
        5e-3, "peak learning rate of a head's weights while the LoRA below it is trained"
    )
    warmup: float = _setting(0.06, "fraction of the steps over which the learning rates rise to their peak")
    max_grad_norm: float = _setting(1.0, "clip the gradients to this global norm; 0 turns clipping off")
    kl_weight: float = _setting(
        0.01, "weight of the KL divergence in the loss: 1 gives the exact ELBO, a smaller weight a cold posterior"
    )
    kl_warmup: float = _setting(0.25, "fraction of the steps over which the weight of the KL divergence rises from 0")
    train_draws: int = _setting(
        4,
        "posterior draws per batch, each for an equal part of the rows; of a batch that "
        "they do not divide evenly, the greatest common divisor of the two",
    )
    validation_draws: int = _setting(4, "posterior draws for the validation NLL, which is computed after recalibration")
    patience: int = _setting(3, "epochs without a better validation NLL before training stops")
    trunk_cache_gib: float = _setting(
        CACHE_GIB,
        "GiB of memory or temporary disk for caching the output of the layers below the adapted ones, once for "
        "training rows and once for validation rows; if the output does not fit, it is computed again in every step",
    )
    seed: int = _setting(
        0, "seed of the initialisation, the order of rows and the noise of a LoRA; a head alone has none of them"
    )
    resume: bool = _setting(False, "resume from the last checkpoint in the work folder, if there is one")
    report_to: str = _setting(
        "none", "tracker for losses and validation metrics; the files for tensorboard go to the folder WORK_DIR.runs"
    )

    def __post_init__(self) -> None:
        if self.report_to not in TRACKERS:
            raise ConfigError(f"got report_to = {self.report_to!r}, expected one of {', '.join(TRACKERS)}")
        for name in (
            *("epochs", "batch_size", "gradient_accumulation"),
            *("learning_rate", "lora_learning_rate", "input_learning_rate"),
            *("scale_learning_rate", "head_learning_rate"),
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
        for name in ("kl_weight", "max_grad_norm", "trunk_cache_gib"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"got {name} = {getattr(self, name)}, expected a number of at least 0")
