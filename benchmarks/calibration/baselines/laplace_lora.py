"""Laplace's approximation over the weights of a trained LoRA (Yang et al., 2024), with the library laplace-torch.

    q(theta) = N(theta_LoRA, diag(GGN + prior_precision)^-1),   GGN = sum_n J_n^T (diag(p_n) - p_n p_n^T) J_n

theta is every entry of every A and B, J_n the Jacobian of the log-probabilities over the choices of row n.

Where it deviates from the paper: the GGN is diagonal, where the paper has Kronecker factors; the predictive averages
over draws of the weights, as for every other method here, where the paper linearises the model; and the prior precision
is the one whose predictive has the lowest validation NLL, for the marginal likelihood knows of neither, and takes the
LoRA for the mode of a posterior whose prior its training never had.
"""

import math
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from blora.errors import ConfigError, NumericalError
from blora.inference.batches import PackedBatch
from blora.inference.fork import first_layer
from blora.inference.scoring import score_rows
from blora.posterior.draws import Draws, Factors
from blora.posterior.inject import inject
from blora.posterior.noise import standard_normal
from blora.training.lora.trunk import with_states
from blora.training.rows.packed import LabelledRow, collate_labelled

with warnings.catch_warnings():
    # Parts of its dependencies, not used here, are written in torch.jit.script, which is deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from laplace import DiagLaplace
    from laplace.curvature import GGNInterface

__all__ = ["PRECISIONS", "LoraClassifier", "LoraLaplace", "RowwiseGGN", "choose_precision", "fit_laplace"]

# Prior standard deviations from 0.3 down to 0.001.
PRECISIONS = tuple(10.0**k for k in range(1, 7))
# The logit of a choice that a row does not have: no probability, and finite, so that the library's products are.
MISSING_LOGIT = -1e4


class LoraClassifier(nn.Module):
    """A LoRA in the library's form of a model: its parameters are the factors alone, its output is logits.

    Args:
        model: the frozen base model with `LoraLinear` at the LoRA's modules.
        lora: the factors, one draw.
    """

    def __init__(self, model: PreTrainedModel, lora: Draws) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, and so no submodule
        self.names = tuple(lora.factors)
        self.scaling = lora.scaling
        factors = [factor[0] for pair in lora.factors.values() for factor in (pair.A, pair.B)]
        self.weights = nn.ParameterList(factor.detach().float().clone() for factor in factors)

    def forward(self, batch: MutableMapping[str, Any]) -> Tensor:
        """Logits (B, C) of a batch of `collate_labelled`."""
        return self.logits(batch["batch"], [weight[None] for weight in self.weights])

    def logits(self, batch: PackedBatch, weights: Sequence[Tensor]) -> Tensor:
        """Log-probabilities (B, C) under weights with a leading dimension S, each slice for its own B / S rows."""
        log_probs = score_rows(self._model[0], batch, self.draws(weights))
        return log_probs.masked_fill(log_probs == -torch.inf, MISSING_LOGIT)

    def draws(self, weights: Sequence[Tensor]) -> Draws:
        """Weights (S, ...) in the order of the parameters, as draws."""
        pairs = zip(self.names, weights[::2], weights[1::2], strict=True)
        return Draws({name: Factors(A, B) for name, A, B in pairs}, self.scaling, len(weights[0]))

    def split(self, flat: Tensor) -> list[Tensor]:
        """Parameter vectors (S, P) as weights (S, ...)."""
        parts = flat.split([weight.numel() for weight in self.weights], dim=1)
        return [part.view(-1, *weight.shape) for part, weight in zip(parts, self.weights, strict=True)]


class RowwiseGGN(GGNInterface):
    """The library's GGN, with Jacobians from plain autograd: C backward passes for each batch.

    Its own backends run a backward pass for every row and choice, each through the whole batch, under functorch. Here
    every row of a batch has its own copy of the factors, one draw a row, so that one pass gives all rows' gradients.
    """

    def jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """Jacobians (B, C, P) and logits (B, C) of a batch, neither of them differentiable.

        Args:
            x: a batch of `collate_labelled`.
            enable_backprop: of the library's interface; not supported.
        """
        classifier: Any = self.model
        n_rows = len(x["labels"])
        copies = [weight.detach().repeat(n_rows, 1, 1).requires_grad_() for weight in classifier.weights]
        logits = classifier.logits(x["batch"], copies)
        by_choice = [torch.autograd.grad(column.sum(), copies, retain_graph=True) for column in logits.unbind(1)]
        flat = [torch.cat([gradient.flatten(1) for gradient in gradients], 1) for gradients in by_choice]
        return torch.stack(flat, 1), logits.detach()


@dataclass(frozen=True, slots=True)
class LoraLaplace:
    """A fitted approximation; its curvature is known, its prior precision is still to choose.

    Attributes:
        classifier: the LoRA.
        laplace: the library's approximation around it.
    """

    classifier: LoraClassifier
    laplace: DiagLaplace

    @torch.no_grad()
    def sample(self, prior_precision: float, n_samples: int, generator: torch.Generator) -> Draws:
        """Return S draws of the weights; draws nest, and differ in their spread alone at equal seeds.

        Raises:
            ConfigError: if the prior precision is not positive.
        """
        if not 0 < prior_precision < math.inf:
            raise ConfigError(f"got a prior precision of {prior_precision}, expected a positive number")
        self.laplace.prior_precision = prior_precision
        mean: Any = self.laplace.mean
        noise = standard_normal(n_samples, generator).like(mean)  # the library's own sample() does not nest
        return self.classifier.draws(self.classifier.split(mean + self.laplace.posterior_scale * noise))


def fit_laplace(
    model: PreTrainedModel, lora: Draws, rows: Sequence[LabelledRow], *, batch_size: int = 8
) -> LoraLaplace:
    """Return the Laplace approximation around a trained LoRA.

    Memory of a batch is that of its forward pass and batch_size * C * P floats.

    Args:
        model: the frozen base model; gets pass-through LoRA layers.
        lora: the factors, one draw.
        rows: those it was trained on.
        batch_size: rows of a forward pass.

    Raises:
        ConfigError: if there is not exactly one draw, or no row.
        NumericalError: if the curvature is not finite.

    References:
        Yang et al., 2024. arXiv:2308.13111
    """
    if lora.n_samples != 1 or not rows:
        raise ConfigError(f"got {lora.n_samples} draws and {len(rows)} rows, expected one trained LoRA and some rows")
    inject(model, lora.factors)
    known = with_states(model, rows, first_layer(lora.factors))
    known.sort(key=lambda row: row.row.n_tokens)  # less padding
    loader: DataLoader[LabelledRow] = DataLoader(
        known,  # type: ignore[arg-type]
        batch_size,
        collate_fn=collate_labelled,
        generator=torch.Generator(),  # or it asks the global one for a seed
    )
    classifier = LoraClassifier(model, lora)
    laplace = DiagLaplace(classifier, "classification", backend=RowwiseGGN)
    laplace.fit(loader)
    if not bool(laplace.H.isfinite().all()):
        raise NumericalError("got a curvature that is not finite; train the LoRA again with a lower learning rate")
    return LoraLaplace(classifier, laplace)


def choose_precision(loss: Callable[[float], float], precisions: Sequence[float]) -> float:
    """Return the precision with the lowest loss; a loss that is not a number is never the lowest.

    Args:
        loss: of a prior precision: the validation NLL of the predictive mean over draws from one seed.
        precisions: those to try.

    Raises:
        ConfigError: if there are none.
        NumericalError: if no loss is finite.
    """
    if not precisions:
        raise ConfigError("got no prior precisions to choose from, expected at least one")
    losses = {precision: loss(precision) for precision in precisions}
    finite = {precision: value for precision, value in losses.items() if math.isfinite(value)}
    if not finite:
        raise NumericalError(f"got no finite loss among {len(losses)} prior precisions; raise them, or train again")
    return min(finite, key=finite.__getitem__)
