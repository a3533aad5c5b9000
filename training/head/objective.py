"""The objective of a LoRA below a decision head: the cross-entropy of the head's answers, through the states it reads.

loss = -log p(y | x, W, LoRA) + precision / 2 * |W|^2 / n_train

The LoRA and the weights of the states are trained together, as points; the weights of the counts and the projection of
the states stay as they were fitted. Afterwards the head is fitted again on the states under the trained LoRA, with its
posterior.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blora.inference.packing import PackedRow
from blora.inference.reading import head_log_probs, read_rows
from blora.posterior.decision_head import DecisionHead, HeadDraws
from blora.posterior.posterior import Posterior
from blora.training.head.features import read_features
from blora.training.lora.objective import Loss, Objective
from blora.training.rows.packed import LabelledRow

__all__ = ["HeadObjective"]

# Tensors of the posterior, which is fitted after the training.
OF_POSTERIOR = ("deviation", "basis")


class HeadObjective(Objective):
    """Cross-entropy of a head above a LoRA.

    Args:
        model: the frozen base model with `LoraLinear` at the LoRA's modules.
        lora: the LoRA to train, a point.
        head: how features are read and projected, and the weights of the counts; the weights of the states start at
            zero, because those that fit the frozen states leave the LoRA no error to learn from.
        n_train: number of training rows, by which the penalty is divided.
        precision: prior precision of the weights of the states.
    """

    def __init__(
        self, model: PreTrainedModel, lora: Posterior, head: DecisionHead, *, n_train: int, precision: float
    ) -> None:
        super().__init__(model, seed=0)
        self._fitted = head
        self._trained = _Trained(lora, head)
        self.n_train = n_train
        self.precision = precision

    @property
    def trained(self) -> "_Trained":
        """The LoRA and the weights of the states, with the tensors of the head that stay as they are."""
        return self._trained

    @property
    def head(self) -> DecisionHead:
        """The head as training stands."""
        tensors = dict(self._trained.fixed.named_buffers()) | dict(self._trained.head.items())
        return DecisionHead(self._fitted.config, **self._fitted.tensors() | tensors)

    def collate(self, rows: Sequence[LabelledRow]) -> dict[str, Any]:
        """Return the rows, and for each the index of its label among all fixed choices, or among its own."""
        labels = [row.row.outputs[row.label] if row.row.outputs else row.label for row in rows]
        return {"batch": tuple(row.row for row in rows), "labels": torch.tensor(labels)}

    def forward(self, batch: Sequence[PackedRow], labels: Tensor, kl_share: float = 1.0) -> Loss:
        """Return the loss of a batch of packed rows; a point has no KL, so that `kl_share` changes nothing."""
        draws = self._draws()
        logits = draws.logits(read_rows(self.model, batch, draws.head.config, draws.lora))[0]
        if batch[0].readout == "pointer":
            present = torch.tensor([[k < row.n_choices for k in range(logits.shape[-1])] for row in batch])
            logits = logits.masked_fill(~present.to(logits.device), -torch.inf)
        nll = nn.functional.cross_entropy(logits, labels.to(logits.device))
        penalty = self.precision * self.trained.head["weight"].square().sum() / 2 / self.n_train
        return Loss(nll + penalty, nll.detach(), torch.zeros_like(nll))

    def log_probs(self, rows: Sequence[LabelledRow], n_samples: int) -> Tensor:
        """Return the log-probabilities (1, N, C) of rows as training stands; a point has one draw."""
        draws = self._draws()
        features = read_features(self.model, rows, draws.head.config, draws.lora, "validating")
        with torch.no_grad():
            return head_log_probs(draws.to(torch.device("cpu")), [row.row for row in rows], features)

    def _draws(self) -> HeadDraws:
        return self.head.mean(self.trained.lora.mean())


class _Trained(nn.Module):
    """A LoRA, and the weights and the bias of a head above it.

    The head's other tensors are buffers: the weights mean nothing on other directions, so a checkpoint holds both.
    """

    def __init__(self, lora: Posterior, head: DecisionHead) -> None:
        super().__init__()
        self.lora = lora
        self.head = nn.ParameterDict({"weight": torch.zeros_like(head.weight), "bias": head.bias.clone()})
        self.fixed = nn.Module()
        for name, tensor in head.tensors().items():
            if name not in (*self.head, *OF_POSTERIOR):
                self.fixed.register_buffer(name, tensor.clone())  # a checkpoint must not change the caller's head
