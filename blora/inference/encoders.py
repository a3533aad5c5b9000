"""Test of whether an encoder reads a prompt alike in any batch.

In an encoder, such as BERT or a sentence encoder, a token sees the whole text. So a prompt is read by itself, and the
padding behind it has to stay hidden.
"""

import torch
from torch import Tensor

from blora.base_model import BaseModel
from blora.errors import BaseModelError
from blora.inference.bounds import OTHER_SHAPE, Moved, check_moved, distance, largest, remedy
from blora.inference.fork import forbid_partial_runs
from blora.inference.packing import PackedRow, collate
from blora.inference.scoring import inputs_of
from blora.inference.unpacked import read_states, unpack
from blora.posterior.inject import n_layers_of

__all__ = ["check_encoder"]

# Tokens of the two prompts of the test, the second of which pads the first.
LENGTHS = (9, 23)


@torch.no_grad()
def check_encoder(base: BaseModel) -> BaseModel:
    """Test on a small example that an encoder reads a prompt beside a longer one as a plain forward pass reads it.

    Returns:
        The base model, which from now on reads prompts alone.

    Raises:
        BaseModelError: if the states of the last layer differ by more than rounding explains, or are not finite.
    """
    model = base.model
    forbid_partial_runs(model, "it is an encoder, in which a token depends on those behind it too")
    unpack(model, "none")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(model.config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    row, longer = (PackedRow(tuple(tokens), (), "none", readout="linear", outputs=(0, 1)) for tokens in ids)
    try:
        plain = torch.tensor([row.prompt], device=model.device)
        alone = _centered(model(input_ids=plain, attention_mask=torch.ones_like(plain)).last_hidden_state[0])
        one, three = _read(base, [row]), _read(base, [row] * 3)
        together = _read(base, [row, longer])
    except BaseModelError:
        raise
    except Exception as exc:  # an unsuitable architecture may raise anything
        raise BaseModelError(
            f"got {base.ref.id}, an encoder that fails on a batch of prompts in {base.dtype_name} "
            f"({type(exc).__name__}: {exc}), expected states of each token: use {remedy(base)}"
        ) from exc
    if not alone.isfinite().all():
        raise BaseModelError(
            f"got {base.ref.id}, which gives no finite numbers in {base.dtype_name}, expected states: use "
            f"{remedy(base)}"
        )
    allowed = OTHER_SHAPE[base.dtype]
    moved: list[Moved] = [
        ("reading a prompt in layers", distance(one, alone), allowed),
        ("a longer prompt in the batch", distance(together, alone), allowed),
    ]
    rounding = largest([distance(three, one), distance(_read(base, [row]), one)])
    check_moved(base, moved, rounding, what="states", fault="a prompt is not read by itself")
    return base


def _read(base: BaseModel, rows: list[PackedRow]) -> Tensor:
    """Return the centered states (T, D) of the first row of a batch at the last layer."""
    batch, end = collate(rows), n_layers_of(base.model)
    states = read_states(base.model, [end], **inputs_of(base.model, batch))[end][0]
    return _centered(states[-rows[0].prompt_tokens :])


def _centered(states: Tensor) -> Tensor:
    return states.float() - states.float().mean()
