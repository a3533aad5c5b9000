"""Batches of packed rows: rows of similar length, padded to one rectangle."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blora.errors import ShapeError
from blora.inference.checkpoints import checkpoint
from blora.inference.packing import PackedRow, States

__all__ = ["PackedBatch", "by_length", "collate", "padded_tokens", "spread_states"]

REMEMBERED_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows padded to one rectangle: prompts end, and choices start, at the same column.

    Attributes:
        input_ids: (B, T).
        position_ids: (B, T).
        n_past: number p of cached keys.
        row: (P,) rows of the predicting positions.
        column: (P,) columns of the predicting positions.
        place: (N,) for each scored token, the index of the position that predicts it.
        token: (N,) the id of each scored token.
        choice: (N,) the choice of each scored token, as row * C + index.
        length: (B, C) number of scored tokens of each choice.
        divisor: (B, C) divisors of log-probabilities; one without normalisation.
        is_choice: (B, C) False beyond a row's choices.
        segment: (B, T) -1 at padding, 0 in the prompt, 1 + index in a choice.
        states: states that enter the first adapted layer, if the rows have them; zero at padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    n_past: int
    row: Tensor
    column: Tensor
    place: Tensor
    token: Tensor
    choice: Tensor
    length: Tensor
    divisor: Tensor
    is_choice: Tensor
    segment: Tensor
    states: States | None

    @property
    def padded_tokens(self) -> int:
        """Padded size of the batch, as `padded_tokens` of its rows."""
        n_rows, width = self.input_ids.shape
        return _padded(n_rows, width, self.n_past)

    def attention_mask(self, device: torch.device) -> Tensor:
        """Return a mask (B, 1, T, p + T): True where a query (dim 2) sees a key (dim 3), cached keys first.

        It is made on the device, which takes less time than its copy would.
        """
        segment = self.segment.to(device)
        length = segment.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        checkpoint()
        key, query = segment[:, None, :], segment[:, :, None]
        visible = causal & ((key == 0) & (query >= 0) | (key == query))  # padding sees padding: no empty softmax
        remembered = (query >= 0).expand(-1, -1, self.n_past)
        return torch.cat([remembered, visible], -1)[:, None]


def padded_tokens(rows: Sequence[PackedRow]) -> int:
    """Return the size of the batch that `collate` makes of rows, in tokens; four cached tokens count as one.

    Cached tokens are not computed, but their keys and values are copied.
    """
    prompt = max(row.prompt_tokens for row in rows)
    width = prompt + max(row.n_tokens - row.prompt_tokens for row in rows)
    return _padded(len(rows), width, rows[0].n_past)


def _padded(n_rows: int, width: int, n_past: int) -> int:
    return n_rows * (width + n_past // REMEMBERED_PER_TOKEN)


def by_length(rows: Sequence[PackedRow], max_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of rows in batches of similar length, the longest first, of at most `max_tokens` padded tokens.

    A row that exceeds the limit makes a batch of its own.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].n_tokens)
    while order:
        picked, prompt, rest = list[int](), 0, 0  # the longest parts are kept: no look at all rows for each further one
        while order:
            row = rows[order[-1]]
            prompt, rest = max(prompt, row.prompt_tokens), max(rest, row.n_tokens - row.prompt_tokens)
            if picked and _padded(len(picked) + 1, prompt + rest, rows[picked[0]].n_past) > max_tokens:
                break
            picked.append(order.pop())
        yield picked


def collate(rows: Sequence[PackedRow], pad_id: int = 0) -> PackedBatch:
    """Pad rows to one rectangle, with prompts to the left of a shared column and choices to its right.

    Raises:
        ShapeError: if the rows differ in their number of cached tokens.
    """
    n_rows, n_choices = len(rows), max(row.n_choices for row in rows)
    if len({row.n_past for row in rows}) > 1:
        raise ShapeError(f"got rows after {sorted({row.n_past for row in rows})} tokens, expected equal numbers")
    [n_past] = {row.n_past for row in rows}
    width = max(row.prompt_tokens for row in rows)  # columns of the prompts
    length = width + max(row.n_tokens - row.prompt_tokens for row in rows)
    input_ids = torch.full((n_rows, length), pad_id, dtype=torch.long)
    position_ids = torch.zeros(n_rows, length, dtype=torch.long)
    segment = torch.full((n_rows, length), -1, dtype=torch.long)  # -1 padding, 0 prompt, 1.. choices
    divisor = torch.ones(n_rows, n_choices)
    is_choice = torch.zeros(n_rows, n_choices, dtype=torch.bool)
    positions: list[tuple[int, int]] = []
    scored: list[tuple[int, int, int]] = []
    for b, row in enumerate(rows):
        start = width - row.prompt_tokens
        input_ids[b, start:width] = torch.tensor(row.prompt)
        position_ids[b, start:width] = torch.arange(row.prompt_tokens) + n_past
        segment[b, start:width] = 0
        is_choice[b, : row.n_choices] = True
        divisor[b, : row.n_choices] = torch.tensor(row.divisors)
        end_of_prompt = len(positions)
        positions.append((b, width - 1))
        column = width
        for c, tokens in enumerate(row.continuations):
            read = len(tokens) - 1
            input_ids[b, column : column + read] = torch.tensor(tokens[:-1], dtype=torch.long)
            position_ids[b, column : column + read] = torch.arange(read) + n_past + row.prompt_tokens
            segment[b, column : column + read] = c + 1
            places = [end_of_prompt, *range(len(positions), len(positions) + read)]
            positions += [(b, k) for k in range(column, column + read)]
            scored += [(place, token, b * n_choices + c) for place, token in zip(places, tokens, strict=True)]
            column += read
    row_, column_ = torch.tensor(positions, dtype=torch.long).unbind(1)
    place, token_, choice_ = torch.tensor(scored, dtype=torch.long).reshape(-1, 3).unbind(1)
    return PackedBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        n_past=n_past,
        row=row_,
        column=column_,
        place=place,
        token=token_,
        choice=choice_,
        length=choice_.bincount(minlength=n_rows * n_choices).view(n_rows, n_choices),
        divisor=divisor,
        is_choice=is_choice,
        segment=segment,
        states=_collate_states(rows, width, length),
    )


def spread_states(rows: Sequence[PackedRow], states: States) -> list[PackedRow]:
    """Return the rows, each with its part of the states (B, T, D) of their batch from `collate`."""
    width = max(row.prompt_tokens for row in rows)
    starts = [width - row.prompt_tokens for row in rows]
    return [
        replace(row, states=States(states.layer, values[start : start + row.n_tokens]))
        for row, values, start in zip(rows, states.values, starts, strict=True)
    ]


def _collate_states(rows: Sequence[PackedRow], width: int, length: int) -> States | None:
    """Return the rows' states in the batch's rectangle, or None unless all rows have states at one layer."""
    found = [row.states for row in rows if row.states is not None]
    if len(found) < len(rows) or len({states.layer for states in found}) > 1:
        return None
    values = found[0].values.new_zeros(len(rows), length, found[0].values.shape[-1])
    for b, (row, states) in enumerate(zip(rows, found, strict=True)):
        start = width - row.prompt_tokens
        values[b, start : start + row.n_tokens] = states.values
    return States(found[0].layer, values)
