"""Log-probabilities of tokens where the output head is a linear layer: exact ones, and those of many draws for less.

Draws differ little in the hidden state h_s that predicts a token, and what they share of the sum of exponentials over V
tokens need not be added up S times. Around the mean h of the draws,

    sum_v exp(w_v h_s)  =  sum_{v in K} exp(w_v h_s)  +  sum_{v not in K} exp(w_v h) exp(w_v (h_s - h))

the likeliest tokens K are added up for every draw. By how much the rest, less than a tenth of the sum, grows from h to
h_s is taken from every eighth token of it: a ratio estimate, right to the last digit where draws agree. So the whole
vocabulary is visited once a position, whatever S. In a decoder of bfloat16, rounding is the larger error. The logits of
the tokens asked for are exact.

Where the rest is most of the sum, or a logit moves by more than ten from the mean to a draw, a position is added up in
full for every draw.

Exact log-probabilities remember for the backward pass nothing but the probabilities, in the dtype of the decoder.
"""

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from blora.inference.fork import hidden_at, logits_at
from blora.posterior.draws import use_draws
from blora.posterior.inject import layer_index

__all__ = ["MIN_DRAWS", "Head", "log_probs_along_draws", "log_probs_of_each", "plain_head"]

# From how many draws on the detour is the shorter way.
MIN_DRAWS = 4
# How many of the likeliest tokens are added up for every draw, and the least vocabulary for which this is few.
N_KEPT = 128
# Of the others, one in so many stands for all, while all are at most this share of the sum and no logit moves more.
STRIDE = 8
MOST_REST, MOST_MOVED = 0.5, 10.0
MIN_VOCABULARY = 32 * N_KEPT
# Elements of float32 at once: 64 MiB.
CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True, slots=True)
class Head:
    """An output head that is a linear layer and nothing else.

    Attributes:
        weight: (V, D).
        bias: (V,).
        rounded: the weight in the dtype of the decoder's layers, for sums over many tokens.
        sampled: every eighth row of it.
    """

    weight: Tensor
    bias: Tensor
    rounded: Tensor
    sampled: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> "Head":
        """The head with these weights in front of a decoder of this dtype."""
        rounded = weight.to(dtype)
        return cls(weight, bias, rounded, rounded[::STRIDE].contiguous())


_HEADS: WeakKeyDictionary[PreTrainedModel, Head | None] = WeakKeyDictionary()


def plain_head(model: PreTrainedModel) -> Head | None:
    """A model's head; None where its vocabulary is small, or where logits are more than a linear layer's output.

    Whether they are is tried once, on two tokens.
    """
    if model not in _HEADS:
        _HEADS[model] = _find_head(model)
    return _HEADS[model]


@torch.no_grad()
def _find_head(model: PreTrainedModel) -> Head | None:
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Linear) or module.out_features < MIN_VOCABULARY:
        return None
    bias = module.bias if module.bias is not None else module.weight.new_zeros(module.out_features)
    ids = torch.tensor([[0, 1]], device=model.device)
    inputs = {"input_ids": ids, "position_ids": ids, "attention_mask": torch.zeros(1, 1, 2, 2, device=model.device)}
    at = (torch.tensor([0, 0], device=model.device), ids[0])
    with use_draws(None):
        logits, hidden = logits_at(model, None, *at, **inputs), hidden_at(model, None, *at, **inputs)
    if not torch.allclose(F.linear(hidden, module.weight, bias), logits, rtol=1e-3, atol=1e-3):
        return None
    low = next(p.dtype for name, p in model.named_parameters() if p.ndim == 2 and layer_index(name) is not None)
    return Head.of(module.weight, bias, low)


def log_probs_along_draws(head: Head, hidden: Tensor, place: Tensor, token: Tensor) -> Tensor:
    """Log-probabilities of tokens under every draw.

    Args:
        head: the output head.
        hidden: (S, P, D) float32, what enters it.
        place: (N,) for each token the position that predicts it.
        token: (N,) ids.

    Returns:
        (S, N) float32.
    """
    width = max(len(head.weight), N_KEPT * hidden.shape[-1], len(head.sampled) * len(hidden))
    parts = hidden.split(max(1, CHUNK_ELEMENTS // width), 1)
    return _logits(head, hidden, place, token) - torch.cat([_estimated(head, part) for part in parts], 1)[:, place]


def log_probs_of_each(head: Head, hidden: Tensor, place: Tensor, token: Tensor) -> Tensor:
    """The same with the whole vocabulary added up for every draw: exact, and differentiable in `hidden`."""
    return _logits(head, hidden, place, token) - _exact(head, hidden)[:, place]


def _logits(head: Head, hidden: Tensor, place: Tensor, token: Tensor) -> Tensor:
    """Of the tokens asked for, (S, N)."""
    return torch.einsum("snd,nd->sn", hidden[:, place], head.weight[token]) + head.bias[token]


class _LogNormalizer(torch.autograd.Function):
    """Log sum exp over the vocabulary of (P, D), (P,)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head) -> Tensor:
        logits = F.linear(hidden, head.weight, head.bias)
        normalizer = logits.logsumexp(-1)
        if ctx.needs_input_grad[0]:
            ctx.head = head
            ctx.save_for_backward(logits.sub_(normalizer[:, None]).exp_().to(head.rounded.dtype))
        return normalizer

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (probs,) = ctx.saved_tensors
        return (probs @ ctx.head.rounded).float() * grads[0][:, None], None


def _exact(head: Head, hidden: Tensor) -> Tensor:
    """Log sum exp over the vocabulary, (S, P), for (S, P, D), a few positions and draws at a time."""
    parts = hidden.flatten(0, 1).split(max(1, CHUNK_ELEMENTS // len(head.weight)))
    return torch.cat([_LogNormalizer.apply(part, head) for part in parts]).view(hidden.shape[:2])  # type: ignore[no-untyped-call]


def _estimated(head: Head, hidden: Tensor) -> Tensor:
    """The same at once, of which the largest part is added up and the rest estimated."""
    center = hidden.mean(0)  # (P, D)
    logits = (center.to(head.rounded.dtype) @ head.rounded.mT).float() + head.bias  # (P, V)
    kept = logits.topk(N_KEPT, -1).indices  # (P, K)
    rest = logits.scatter_(1, kept, -torch.inf)
    sampled = rest[:, ::STRIDE]
    moved = ((hidden - center).to(head.sampled.dtype) @ head.sampled.mT).float()  # (S, P, V / 8)
    furthest = moved.abs().amax((0, -1))  # (P,)
    growth = moved.add_(sampled).logsumexp(-1) - sampled.logsumexp(-1)  # (S, P)
    each = torch.bmm(hidden.transpose(0, 1), head.weight[kept].mT) + head.bias[kept][:, None]  # (P, S, K)
    tail = rest.logsumexp(-1) + growth
    total = torch.logaddexp(each.logsumexp(-1).mT, tail)
    unsure = ~(((tail - total).amax(0) <= math.log(MOST_REST)) & (furthest <= MOST_MOVED))
    if unsure.any():
        total[:, unsure] = _exact(head, hidden[:, unsure])
    return total
