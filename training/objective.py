"""The training objective: the negative evidence lower bound per example, as a module around the frozen model.

loss = E_q[-log p(y | x, W)] + kl_weight * KL[q || p] / n_train

kl_weight = 1 is the exact bound; below it the posterior is cold. With a posterior collapsed to a point the KL is
zero and this is the cross-entropy over choices of plain LoRA.
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
    """Negative ELBO of a batch; the posterior's parameters are the only ones that learn.

    Every forward pass draws anew: the batch is divided among `n_draws` posterior draws, so more draws lower the
    gradient's variance at no cost in model passes.

    Args:
        model: the frozen base model with `LoraLinear` at the posterior's modules.
        posterior: what is learnt.
        n_train: training examples, which share one KL.
        kl_weight: weight of the KL after warm-up.
        n_draws: most draws a batch is divided among.
        seed: of the noise.

    Attributes:
        rank: of this process among several; each has a noise of its own.
        n_forwards: forward passes so far, which number the noise.
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
        """Switches the posterior alone: a frozen base model must not drop out activations."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, batch: PackedBatch, labels: Tensor, kl_share: float = 1.0) -> Loss:
        """The loss of a batch.

        Args:
            batch: B rows.
            labels: (B,) indices of the right choices.
            kl_share: share of the KL weight in force, below 1 during warm-up.
        """
        generator = generator_of(self.seed, self.rank, self.n_forwards)
        self.n_forwards += 1
        draws = self.posterior.sample(math.gcd(len(labels), self.n_draws), generator)
        log_probs = score_rows(self.model, batch, draws)  # (B, C)
        nll = -log_probs.gather(1, labels.to(log_probs.device)[:, None]).mean()
        kl = self.posterior.kl_divergence(generator) / self.n_train
        return Loss(nll + self.kl_weight * kl_share * kl, nll.detach(), kl.detach())
