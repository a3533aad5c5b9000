"""Training objectives, as modules around the frozen model, and the usual one: the negative evidence lower bound (ELBO).

loss = E_q[-log p(y | x, W)] + kl_weight * KL[q || p] / n_train

kl_weight = 1 gives the exact bound, a smaller weight a cold posterior. If the posterior is a point, the KL is zero and
the loss is the cross-entropy over the choices, as for plain LoRA.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from blora.inference.batches import PackedBatch
from blora.inference.scoring import score_rows
from blora.posterior.bank import SampleBank
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.evaluate import predict_all
from blora.training.rows.packed import LabelledRow, collate_labelled

__all__ = ["Elbo", "Loss", "Objective"]


class Loss(NamedTuple):
    """The parts of the negative ELBO of a batch, each a scalar in nats per example."""

    total: Tensor
    nll: Tensor
    kl: Tensor


class Objective(nn.Module, ABC):
    """A loss per example, of which only the trained part has parameters that change.

    Args:
        model: the frozen base model with `LoraLinear` at the adapted modules.
        seed: seed of the noise.

    Attributes:
        rank: rank of this process, so that each process has its own noise.
        n_forwards: number of forward passes so far, so that each pass has its own noise.
    """

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.rank = 0
        self.n_forwards = 0

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The part that is trained, saved and restored."""

    def train(self, mode: bool = True) -> "Objective":
        """Set the mode of the trained part; the frozen base model stays in eval mode, so that dropout is off."""
        super().train(mode)
        self.model.eval()
        return self

    def collate(self, rows: Sequence[LabelledRow]) -> dict[str, Any]:
        """Return a batch and its labels as `forward` takes them."""
        return collate_labelled(rows)

    @abstractmethod
    def forward(self, batch: Any, labels: Tensor, kl_share: float = 1.0) -> Loss:
        """Return the loss of a batch; `kl_share` is a factor on the KL weight, below 1 during warm-up."""

    @abstractmethod
    def log_probs(self, rows: Sequence[LabelledRow], n_samples: int) -> Tensor:
        """Return the log-probabilities (S, N, C) of rows as training stands, under at most `n_samples` draws."""


class Elbo(Objective):
    """Negative ELBO of a batch; only the posterior's parameters are trained.

    Every forward pass takes fresh draws and divides the batch among them: more draws lower the variance of the
    gradient without further passes through the model.

    Args:
        model: the frozen base model with `LoraLinear` at the posterior's modules.
        posterior: the posterior to train.
        n_train: number of training examples, by which the KL is divided.
        kl_weight: weight of the KL after warm-up.
        n_draws: largest number of draws per batch; the number used divides the batch size.
        seed: seed of the noise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        posterior: Posterior,
        *,
        n_train: int,
        kl_weight: float,
        n_draws: int,
        seed: int,
    ) -> None:
        super().__init__(model, seed)
        self.posterior = posterior
        self.n_train = n_train
        self.kl_weight = kl_weight
        self.n_draws = n_draws

    @property
    def trained(self) -> Posterior:
        """The posterior."""
        return self.posterior

    def forward(self, batch: PackedBatch, labels: Tensor, kl_share: float = 1.0) -> Loss:
        """Return the loss of a batch.

        Args:
            batch: B packed rows.
            labels: (B,) indices of the correct choices.
            kl_share: factor on the KL weight, below 1 during warm-up.
        """
        generator = generator_of(self.seed, self.rank, self.n_forwards)
        self.n_forwards += 1
        draws = self.posterior.sample(math.gcd(len(labels), self.n_draws), generator)
        log_probs = score_rows(self.model, batch, draws)  # (B, C)
        nll = -log_probs.gather(1, labels.to(log_probs.device)[:, None]).mean()
        kl = self.posterior.kl_divergence(generator) / self.n_train
        return Loss(nll + self.kl_weight * kl_share * kl, nll.detach(), kl.detach())

    def log_probs(self, rows: Sequence[LabelledRow], n_samples: int) -> Tensor:
        """Return the log-probabilities (S, N, C) of rows as training stands; a point has one draw."""
        n_samples = 1 if self.posterior.config.method == "lora" else n_samples
        bank = SampleBank.draw(self.posterior, "in training", n_samples, self.seed)
        return predict_all(self.model, rows, bank.draws)
