"""Reading of a set's rows: the features of a decision head, and the perplexity of each question."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from benchmarks.elsewhere.sets import Elsewhere
from benchmarks.peers.reading import ReadSet, kept_in, read_set
from blora.base_model import BaseModel
from blora.inference.batches import by_length
from blora.inference.packing import PackedRow
from blora.training.progress import rows_bar

__all__ = ["Read", "read"]

BATCH_TOKENS = 512


class Read(NamedTuple):
    """The rows of a set as read once.

    Attributes:
        rows: the features of every row.
        test_perplexity: (N,) mean negative log-probability of a test question's tokens, in nats.
        foreign_perplexity: (F,) the same of the foreign questions.
    """

    rows: ReadSet
    test_perplexity: Tensor
    foreign_perplexity: Tensor


def read(base: BaseModel, elsewhere: Elsewhere, kept: Path | None) -> Read:
    """Return the rows of a set.

    Args:
        base: the base model.
        elsewhere: the set and its foreign rows.
        kept: file of an earlier run, see `kept_in`; None for none.
    """

    def anew() -> Read:
        rows = read_set(base, elsewhere.task)
        assert rows.foreign is not None  # every set has foreign rows
        test, foreign = ([row.row for row in part.rows] for part in (rows.test, rows.foreign))
        return Read(rows, log_perplexities(base, test), log_perplexities(base, foreign))

    return kept_in(kept, anew)


@torch.no_grad()
def log_perplexities(base: BaseModel, rows: Sequence[PackedRow]) -> Tensor:
    """Return the mean negative log-probability (N,) of the tokens of each row's prompt after the first, in nats."""
    found = torch.zeros(len(rows))
    with rows_bar(len(rows), "perplexities") as bar:
        for picked in by_length(rows, BATCH_TOKENS):
            prompts = [torch.tensor(rows[i].prompt) for i in picked]
            tokens, seen = pad_sequence(prompts, True), pad_sequence([torch.ones_like(one) for one in prompts], True)
            tokens, seen = tokens.to(base.device), seen.to(base.device)
            logits = base.model(input_ids=tokens, attention_mask=seen).logits[:, :-1]
            lost = cross_entropy(logits.float().mT, tokens[:, 1:], reduction="none") * seen[:, 1:]
            found[torch.tensor(picked)] = (lost.sum(1) / seen[:, 1:].sum(1).clamp_min(1)).cpu()
            bar.update(len(picked))
    return found
