"""The training objective: the negative evidence lower bound (ELBO) per example, as a module around the frozen model.

loss = E_q[-log p(y | x, W)] + kl_weight * KL[q || p] / n_train

kl_weight = 1 gives the exact bound, a smaller weight a cold posterior. If the posterior is a point, the KL is zero and
the loss is the cross-entropy over the choices, as for plain LoRA.
"""

import math
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from blora.inference.packing import PackedBatch
from blora.inference.scoring import score_rows
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior

__all__ = ["Elbo", "Loss"]


class Loss(NamedTuple):
    """The parts of the negative ELBO of a batch, each a scalar in nats per example."""

    total: Tensor
    nll: Tensor
    kl: Tensor


class Elbo(nn.Module):
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

    Attributes:
        rank: rank of this process, so that each process has its own noise.
        n_forwards: number of forward passes so far, so that each pass has its own noise.
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
        super().__init__()
        self.model = model
        self.posterior = posterior
        self.n_train = n_train
        self.kl_weight = kl_weight
        self.n_draws = n_draws
        self.seed = seed
        self.rank = 0
        self.n_forwards = 0

    def train(self, mode: bool = True) -> "Elbo":
        """Set the mode of the posterior; the frozen base model stays in eval mode, so that dropout is off."""
        super().train(mode)
        self.model.eval()
        return self

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
