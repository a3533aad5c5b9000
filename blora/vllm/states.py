"""Answers of adapters with a head from a vLLM that runs as a pooling server, which returns the last layer's states.

The states go with the packed row, so that the functions of the engine in this process run no layer of the base model.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from blora.base_model import BaseModel
from blora.config import HeadConfig
from blora.errors import AdapterError
from blora.inference.batches import collate
from blora.inference.packing import PackedRow, States
from blora.inference.reading import as_read, head_log_probs, read_rows
from blora.inference.scoring import score_rows
from blora.posterior.decision_head import Features, HeadDraws
from blora.posterior.draws import NO_LORA
from blora.posterior.inject import n_layers_of
from blora.vllm.client import Sending, VllmClient
from blora.vllm.turns import all_of

__all__ = ["check_readable", "check_same_states", "read_log_probs", "states_of"]

# Largest difference of states between vLLM and this process that rounding explains, as a share of their norm; those of
# another model differ by about as much as their norm.
STATES_TOLERANCE = 0.2


def check_readable(name: str, head: HeadConfig, base: BaseModel) -> None:
    """Check that a head reads the states that vLLM returns.

    Raises:
        AdapterError: if it reads other states, or those of an encoder, alone or beside.
    """
    if base.is_encoder:
        raise AdapterError(
            f"got adapter {name!r} of {base.ref.id}, an encoder, expected one of a language model: serve it with "
            "--engine torch"
        )
    if head.companion is not None:
        raise AdapterError(
            f"got adapter {name!r}, whose head reads {head.companion.model.id} beside {base.ref.id}, expected one of a "
            "language model alone: serve it with --engine torch"
        )
    n_layers = n_layers_of(base.model)
    if head.depths != (n_layers,):
        raise AdapterError(
            f"got adapter {name!r}, whose head reads the states at {[*head.depths]}, expected {n_layers} alone, the "
            "last ones, which are all that vLLM returns: train it with --depths last, or serve it with --engine torch"
        )


async def states_of(
    vllm: VllmClient, model: str, row: PackedRow, head: HeadConfig, sending: Sending = nullcontext
) -> States:
    """Return the states of all tokens that a row reads, (n_tokens, F).

    Args:
        vllm: the client of the pooling server.
        model: the name there of the adapter's LoRA, or of the base model.
        row: a question; each choice takes a text of its own, after the prompt.
        head: the settings of a head on the last layer's states.
        sending: entered before each request and left after it; an exception that it raises cancels the request.
    """

    async def read(choice: tuple[int, ...], begin: int) -> Tensor:
        return (await vllm.states(model, row.prompt + choice, head.n_states, sending))[begin:].clone()

    read_choices = [tokens[:-1] for tokens in row.continuations if len(tokens) > 1]
    first, *others = read_choices or [()]
    values = await all_of([read(first, 0), *(read(choice, row.prompt_tokens) for choice in others)])
    [layer] = head.depths
    return States(layer, torch.cat(values))


@torch.no_grad()
def read_log_probs(base: BaseModel, draws: HeadDraws, row: PackedRow) -> tuple[Tensor, Features]:
    """Return log-probabilities (S, C) of a row's choices under each draw, and the features that they come from.

    Args:
        base: the base model, of which the output head alone runs.
        draws: S draws of the head. The language model's scores, for choices that the head does not answer, are the same
            under each.
        row: the row, with its states from `states_of`.
    """
    # Under no LoRA, because the states were computed under the adapter's LoRA already.
    features = read_rows(base.model, [as_read(row, draws.head)], draws.head.config, NO_LORA)
    if row.readout == "scores":
        return score_rows(base.model, collate([row]), None).expand(draws.n_samples, -1), features
    return head_log_probs(draws, [row], features)[:, 0], features


def check_same_states(found: Tensor, expected: Tensor, name: str, base: BaseModel) -> None:
    """Check that the mean states (R, F) of prompts from vLLM are those computed here.

    Raises:
        AdapterError: if they differ by more than rounding explains.
    """
    apart = float((found - expected).norm() / expected.norm())
    if not apart <= STATES_TOLERANCE:
        raise AdapterError(
            f"The states of adapter {name!r} from vLLM differ by {apart:.0%} from those computed here, where at most "
            f"{STATES_TOLERANCE:.0%} is allowed: let vLLM serve the same base model ({base.ref.id})"
        )
