"""Labelled questions as token rows, ready for the model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blora.base_model import BaseModel
from blora.config import PromptConfig
from blora.errors import PromptError
from blora.inference.batches import PackedBatch, collate
from blora.inference.packing import PackedRow, pack
from blora.training.rows.examples import ExampleSet, refuse_rows

__all__ = ["LabelledRow", "collate_labelled", "labels_of", "lengths_of", "n_texts_of", "pack_examples"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A packed question and the index of its correct choice.

    Attributes:
        row: the question.
        label: index of the correct choice.
        text: text that is equal for questions about the same text, empty if it is not known.
    """

    row: PackedRow
    label: int
    text: str = ""


def pack_examples(examples: ExampleSet, base: BaseModel, prompt: PromptConfig) -> list[LabelledRow]:
    """Tokenise every example.

    Raises:
        DataError: if rows cannot be tokenised; the message names the place of each.
    """
    rows, problems = [], []
    for example in examples.examples:
        try:
            row = pack(
                base.tokenizer,
                choices=example.choices,
                config=prompt,
                prompt=example.prompt,
                messages=example.messages,
                max_length=base.max_length,
                encoder=base.is_encoder,
            )
        except PromptError as exc:
            problems.append(f"{example.where}: {exc}")
        else:
            rows.append(LabelledRow(row, example.label, example.text))
    refuse_rows(problems)
    shadowed = [pair for row in rows if (pair := row.row.shadowed) is not None]
    if shadowed:
        logger.warning(
            "in %d of %d questions one choice begins another, as in %r, which can never beat %r; "
            "train with --choice-end newline or eos",
            len(shadowed),
            len(rows),
            *shadowed[0],
        )
    return rows


def labels_of(rows: Sequence[LabelledRow]) -> Tensor:
    """Return the index of each row's correct choice, shape (N,)."""
    return torch.tensor([row.label for row in rows])


def n_texts_of(rows: Sequence[LabelledRow]) -> int:
    """Return the number of different texts that rows are about."""
    return len({row.text or i for i, row in enumerate(rows)})


def lengths_of(rows: Sequence[LabelledRow]) -> Tensor:
    """Return the length in tokens that normalises each row, shape (N,); 1 unless normalization is "question"."""
    return torch.tensor([row.row.lengths[0] if row.row.normalization == "question" else 1.0 for row in rows])


def collate_labelled(rows: Sequence[LabelledRow]) -> dict[str, Any]:
    """Return a batch for `blora.training.lora.objective`: {"batch": PackedBatch, "labels": (B,)}."""
    batch: PackedBatch = collate([row.row for row in rows])
    return {"batch": batch, "labels": labels_of(rows)}
