"""Fitting of a posterior with the Hugging Face Trainer: accelerate, checkpoints, progress bars and trackers."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback, get_available_reporting_integrations
from transformers.utils.import_utils import is_in_notebook

from blora.base_model import BaseModel
from blora.decision.metrics import metrics
from blora.disk.tensors import write_tensors
from blora.errors import ConfigError
from blora.inference.fork import first_layer
from blora.posterior.inject import inject
from blora.posterior.posterior import Posterior
from blora.training.config import TrainConfig
from blora.training.lora.checkpoints import STATE_FILE
from blora.training.lora.objective import Elbo, Loss, Objective
from blora.training.lora.optimizer import make_optimizer
from blora.training.lora.sampler import LengthGroupedOrder
from blora.training.lora.trunk import with_states
from blora.training.rows.packed import LabelledRow, labels_of
from blora.training.trials import trial_of

__all__ = ["Fitted", "PosteriorTrainer", "check_tracker", "fit", "minimize"]

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "posterior.safetensors"
# The NLL after recalibration: an adapter is served recalibrated, so overconfidence must not decide the best epoch.
CRITERION = "eval_recalibrated_nll"
TENSORBOARD = "tensorboard"


@dataclass(frozen=True, slots=True)
class Fitted:
    """The outcome of a training run, apart from the posterior itself.

    Attributes:
        seconds: time that this process spent in training steps, without validation.
        best_epoch: the epoch, from 1, with the lowest validation NLL after recalibration.
        last: the posterior's state after the last step.
    """

    seconds: float
    best_epoch: int
    last: dict[str, Tensor]


def fit(
    base: BaseModel,
    posterior: Posterior,
    train: Sequence[LabelledRow],
    validation: Sequence[LabelledRow],
    config: TrainConfig,
    checkpoint: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fitted:
    """Fit a posterior in place, as `minimize` does, with the layers below it run once per row.

    Args:
        base: the frozen base model; LoRA layers are injected into it.
        posterior: the posterior to fit.
        train: the training rows.
        validation: the validation rows, none of them in `train`.
        config: the training settings.
        checkpoint: folder of the checkpoint to resume from, None to start anew.
        callbacks: additional callbacks for the Trainer.
    """
    inject(base.model, posterior.modules_shape)
    layer = first_layer(posterior.modules_shape)
    train, validation = (with_states(base.model, rows, layer, config.trunk_cache_gib) for rows in (train, validation))
    elbo = Elbo(
        base.model,
        posterior,
        n_train=len(train),
        kl_weight=config.kl_weight,
        n_draws=config.train_draws,
        seed=config.seed,
    )
    return minimize(elbo, train, validation, config, base.device, checkpoint, callbacks)


def minimize(
    objective: Objective,
    train: Sequence[LabelledRow],
    validation: Sequence[LabelledRow],
    config: TrainConfig,
    device: torch.device,
    checkpoint: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fitted:
    """Train an objective's trained part and restore the epoch with the lowest validation NLL after recalibration.

    Args:
        objective: the objective.
        train: the training rows.
        validation: the validation rows, none of them in `train`.
        config: the training settings.
        device: the base model's device.
        checkpoint: folder of the checkpoint to resume from, None to start anew.
        callbacks: additional callbacks for the Trainer.
    """
    trainer = PosteriorTrainer(objective, train, validation, config, device=device, callbacks=callbacks)
    if checkpoint is None or not trainer.end_at(checkpoint):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    objective.trained.requires_grad_(False)
    validated = [entry for entry in trainer.state.log_history if CRITERION in entry]
    best = min(validated, key=lambda entry: entry[CRITERION], default={"epoch": 0.0})
    seconds = max(entry["training_seconds"] for entry in trainer.state.log_history)
    return Fitted(seconds, round(best["epoch"]), trainer.last)


def check_tracker(report_to: str) -> None:
    """Check that a requested tracker is installed.

    Raises:
        ConfigError: if the tracker is not installed; the message names the package to install.
    """
    if report_to != "none" and report_to not in get_available_reporting_integrations():
        raise ConfigError(
            f"got report_to = {report_to!r}, expected a tracker that is installed: run `pip install {report_to}`, or "
            "leave it out"
        )


def _tensorboard(work_dir: Path) -> TrainerCallback:
    """Return a callback that writes TensorBoard's files beside the work folder, which is removed after the run."""
    callback = TensorBoardCallback()
    if callback.logging_dir is None:  # TENSORBOARD_LOGGING_DIR is not set
        callback.logging_dir = str(work_dir.with_name(f"{work_dir.name}.runs"))
    return callback


class PosteriorTrainer(Trainer):
    """The Trainer with an objective as loss and the recalibrated validation NLL for early stopping."""

    def __init__(
        self,
        objective: Objective,
        train: Sequence[LabelledRow],
        validation: Sequence[LabelledRow],
        config: TrainConfig,
        *,
        device: torch.device,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        arguments = TrainingArguments(
            output_dir=str(config.work_dir),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=config.warmup,
            max_grad_norm=config.max_grad_norm,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            restore_callback_states_from_checkpoint=True,
            metric_for_best_model=CRITERION,
            greater_is_better=False,
            logging_steps=10,
            logging_nan_inf_filter=False,
            seed=config.seed,
            disable_tqdm=not (sys.stderr.isatty() or is_in_notebook()),
            report_to="none" if config.report_to == TENSORBOARD else config.report_to,
            use_cpu=device.type == "cpu",
            remove_unused_columns=False,
            label_names=["labels"],
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # several devices take several processes, never DataParallel
        # transformers has just selected the first device, for itself and for torch, wherever the base model is.
        arguments.__dict__["_setup_devices"] = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        super().__init__(
            model=objective,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=objective.collate,
            callbacks=[
                EarlyStoppingCallback(early_stopping_patience=config.patience),
                *([_tensorboard(config.work_dir)] if config.report_to == TENSORBOARD else []),
                *callbacks,
            ],
        )
        self.remove_callback(PrinterCallback)  # `log` writes the same to the logger
        self.objective: Objective = objective
        self.validation = validation
        self.config = config
        self.parts: list[Loss] = []
        self.seconds = 0.0
        self.last: dict[str, Tensor] = {}
        objective.rank = self.args.process_index

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Sequence[LabelledRow] = self.train_dataset  # type: ignore[assignment]
        together = self.args.train_batch_size * self.args.world_size
        return LengthGroupedOrder([row.row.n_tokens for row in rows], together, self.args.seed)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return AdamW with one learning rate for each kind of parameter of the trained part."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.objective.trained, self.config)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run one forward and backward pass, with noise that depends on the step so that a resumed run repeats it."""
        if not self.seconds:
            earlier = [entry["training_seconds"] for entry in self.state.log_history if "training_seconds" in entry]
            self.seconds = max(earlier, default=0.0)
        steps_done = self.state.global_step * self.args.gradient_accumulation_steps
        self.objective.n_forwards = max(self.objective.n_forwards, steps_done)
        began = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.seconds += time.perf_counter() - began
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of a batch, with the KL weight of the current step of its warm-up."""
        warmup_steps = self.config.kl_warmup * self.state.max_steps
        share = min(1.0, (self.state.global_step + 1) / warmup_steps) if warmup_steps else 1.0
        loss: Loss = model(inputs["batch"], inputs["labels"], share)
        self.parts.append(loss)
        return loss.total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss, its two parts, and the seconds of training so far, which a resumed run continues to count."""
        logs["training_seconds"] = self.seconds
        if "loss" in logs and self.parts:
            logs["nll"] = torch.stack([part.nll for part in self.parts]).mean().item()
            logs["kl"] = torch.stack([part.kl for part in self.parts]).mean().item()
            self.parts.clear()
        validated = any(name.startswith("eval_") for name in logs)
        logger.log(logging.INFO if validated else logging.DEBUG, "step %d: %s", self.state.global_step, logs)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Return and log the validation metrics of the predictive mean, and its NLL after recalibration."""
        began = time.perf_counter()
        log_probs = self.validate()
        found = metrics(log_probs.double().exp().mean(0), labels_of(self.validation)).to_dict()
        found["recalibrated_nll"] = trial_of(1.0, log_probs, self.validation).metrics.nll
        logs = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        logs[f"{metric_key_prefix}_runtime"] = time.perf_counter() - began
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def end_at(self, checkpoint: Path) -> bool:
        """Load the best epoch if training had stopped early at a checkpoint, and return whether it had.

        The Trainer itself would go on, because it forgets at the start of a resumed run that it was to stop.
        """
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        # A list where a caller's callbacks include one of this name too.
        kept = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, [])
        waited = [
            one["attributes"]["early_stopping_patience_counter"] for one in ([kept] if isinstance(kept, dict) else kept)
        ]
        if max(waited, default=0) < self.config.patience:
            return False
        self.state = state
        self._load_from_checkpoint(str(checkpoint))
        self._load_best_model()
        return True

    def validate(self) -> Tensor:
        """Return the log-probabilities (S, N, C) of the validation rows as training stands."""
        return self.objective.log_probs(self.validation, self.config.validation_draws)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / CHECKPOINT_FILE, self.objective.trained.state_dict())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.objective.trained.load_state_dict(load_file(Path(resume_from_checkpoint) / CHECKPOINT_FILE))

    def _load_best_model(self) -> None:
        self.last = {name: tensor.clone() for name, tensor in self.objective.trained.state_dict().items()}
        if self.state.best_model_checkpoint is not None:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
