"""Features of labelled rows for a decision head, read once in passes of similar length.

What all rows begin with, such as the instructions of a template, is computed once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.config import HeadConfig
from blora.decision.metrics import refuse_rows
from blora.inference.batches import by_length
from blora.inference.branches import n_shared
from blora.inference.reading import read_prefix, read_rows
from blora.posterior.decision_head import Features
from blora.posterior.draws import Draws
from blora.training.evaluate import batch_tokens
from blora.training.progress import rows_bar
from blora.training.rows.packed import LabelledRow

__all__ = ["read_features"]


@torch.no_grad()
def read_features(
    model: PreTrainedModel, rows: Sequence[LabelledRow], config: HeadConfig, lora: Draws, about: str
) -> Features:
    """Return the features of all rows on the CPU, those of a pointer head row after row: see `Features.owner`.

    Raises:
        NumericalError: if a state is not finite, as after an overflow in float16.
    """
    packed = [row.row for row in rows]
    pointer = packed[0].readout == "pointer"
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    counts, prompts, grams = list(states), list(states), list(states)
    n_tokens = n_shared(model, packed)
    shortest = min(packed, key=lambda row: row.n_tokens)
    prefix = read_prefix(model, shortest, n_tokens, config, lora) if n_tokens else None
    with rows_bar(len(rows), about) as bar:
        for picked in by_length([row.after(n_tokens) for row in packed], batch_tokens(model)):
            found = read_rows(model, [packed[i] for i in picked], config, lora, prefix)
            assert found.prompt is not None  # `read_rows` reads it
            for place, i in enumerate(picked):
                states[i], counts[i] = (
                    (part[place, : packed[i].n_choices] if pointer else part[place]).to("cpu", copy=True)
                    for part in (found.states, found.counts)
                )
                prompts[i] = found.prompt[place].cpu()
                if found.grams:
                    grams[i] = found.grams[place]
            bar.update(len(picked))
    finite = [bool(own.isfinite().all() & prompt.isfinite().all()) for own, prompt in zip(states, prompts, strict=True)]
    refuse_rows(~torch.tensor(finite), "states that are not finite", "finite ones, as in --dtype float32")
    if not pointer:
        own = tuple(grams) if config.n_grams else ()
        return Features(torch.stack(states), torch.stack(counts), torch.stack(prompts), grams=own)
    owner = torch.arange(len(rows)).repeat_interleave(torch.tensor([row.n_choices for row in packed]))
    return Features(torch.cat(states), torch.cat(counts), torch.stack(prompts), owner)
