"""Test of whether an encoder reads a prompt alike in any batch.

In an encoder, such as BERT or a sentence encoder, a token sees the whole text. So a prompt is read by itself, and the
padding behind it has to stay hidden.
"""

from dataclasses import replace

import torch
from torch import Tensor

from blora.base_model import BaseModel
from blora.base_model.loading import max_length_of
from blora.errors import BaseModelError
from blora.inference.batches import collate
from blora.inference.bounds import Moved, check_moved, distance, largest, remedy
from blora.inference.fork import forbid_partial_runs
from blora.inference.packing import PackedRow
from blora.inference.scoring import inputs_of
from blora.inference.unpacked import read_states, unpack
from blora.posterior.inject import n_layers_of

__all__ = ["check_encoder"]

# Tokens of the two prompts of the test, the second of which pads the first.
LENGTHS = (9, 23)
# Largest allowed changes of states beside the measured rounding, as `OTHER_SHAPE` for logits. Encoders that read the
# padding change them by 0.03 to 0.5.
OTHER_WIDTH = {torch.float32: 1e-3, torch.bfloat16: 0.02, torch.float16: 0.01}
# Change of the first token's states by other tokens behind it, without which it sees none; equal tokens change nothing.
LEAST = 1e-5


@torch.no_grad()
def check_encoder(base: BaseModel) -> BaseModel:
    """Test on a small example that an encoder reads a prompt beside a longer one as a plain forward pass reads it.

    The states of every layer have to agree, and the first token's have to depend on those behind it.

    Returns:
        The base model, which from now on reads prompts alone, up to the model's own positions.

    Raises:
        BaseModelError: if the states differ by more than rounding explains, or are not finite, or if no token sees
            those behind it.
    """
    model = base.model
    forbid_partial_runs(model, "it is an encoder, in which a token depends on those behind it too")
    unpack(model, "none")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(model.config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    row, longer = (PackedRow(tuple(tokens), (), "none", readout="linear", outputs=(0, 1)) for tokens in ids)
    other = replace(row, prompt=(row.prompt[0], *longer.prompt[1 : len(row.prompt)]))
    try:
        plain = torch.tensor([row.prompt], device=model.device)
        alone = model(input_ids=plain, attention_mask=torch.ones_like(plain)).last_hidden_state[0].float()
        one, again, three, together = (_read(base, rows) for rows in ([row], [row], [row] * 3, [row, longer]))
        seen = distance(_read(base, [other])[-1, :1], one[-1, :1])
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
    allowed = OTHER_WIDTH[base.dtype]
    moved: list[Moved] = [
        ("reading a prompt in layers", distance(one[-1], alone - alone.mean(-1, keepdim=True)), allowed),
        ("a longer prompt in the batch", distance(together, one), allowed),
    ]
    rounding = largest([distance(three, one), distance(again, one)])
    check_moved(base, moved, rounding, what="states", fault="a prompt is not read by itself")
    if not seen > LEAST:
        raise BaseModelError(
            f"got {base.ref.id}, an encoder in which a token does not see those behind it, expected one that attends "
            "to the whole text; its attention may need a GPU, or a package that is not installed"
        )
    return replace(base, max_length=max_length_of(model, beyond_window=True))


def _read(base: BaseModel, rows: list[PackedRow]) -> Tensor:
    """Return the states (n_layers, T, D) of the first row of a batch behind each layer, each token's centered."""
    depths = range(1, n_layers_of(base.model) + 1)
    found = read_states(base.model, depths, **inputs_of(base.model, collate(rows)))
    states = torch.stack([found[depth][0, -rows[0].prompt_tokens :].float() for depth in depths])
    return states - states.mean(-1, keepdim=True)
