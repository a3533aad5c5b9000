"""Rectangles of tokens for a forward pass, made of rows that differ in length."""

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
    """The R sequences of B rows, padded to one rectangle.

    Prompts end, and choices start, at the same column. Sequences of `separate` rows begin at the first column instead.

    Attributes:
        input_ids: (R, T).
        position_ids: (R, T).
        n_past: number p of cached keys.
        owner: (R,) the row of each sequence; R = B unless `separate`.
        row: (P,) sequences of the predicting positions.
        column: (P,) columns of the predicting positions.
        place: (N,) for each scored token, the index of the position that predicts it.
        token: (N,) the id of each scored token.
        choice: (N,) the choice of each scored token, as row * C + index.
        length: (B, C) number of scored tokens of each choice.
        divisor: (B, C) divisors of log-probabilities; one without normalisation.
        is_choice: (B, C) False beyond a row's choices.
        segment: (R, T) -1 at padding and in further copies of a prompt, 0 in the prompt, 1 + index in a choice.
        separate: whether the sequences are read as they are, without block masks.
        states: states that enter the first adapted layer, if the rows have them; zero at padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    n_past: int
    owner: Tensor
    row: Tensor
    column: Tensor
    place: Tensor
    token: Tensor
    choice: Tensor
    length: Tensor
    divisor: Tensor
    is_choice: Tensor
    segment: Tensor
    separate: bool
    states: States | None

    @property
    def padded_tokens(self) -> int:
        """Padded size of the batch, as `padded_tokens` of its rows."""
        n_sequences, width = self.input_ids.shape
        return n_sequences * (width + self.n_past // REMEMBERED_PER_TOKEN)

    def attention_mask(self, device: torch.device) -> Tensor:
        """Return a mask (R, 1, T, p + T): True where a query (dim 2) sees a key (dim 3), cached keys first.

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
    n_sequences = sum(row.n_sequences for row in rows)
    return n_sequences * (_width(rows, _starts(rows)) + rows[0].n_past // REMEMBERED_PER_TOKEN)


def by_length(rows: Sequence[PackedRow], max_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of rows in batches of similar length, the longest first, of at most `max_tokens` padded tokens.

    A row that exceeds the limit makes a batch of its own.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].n_tokens)
    while order:
        picked = [order.pop()]
        while order and padded_tokens([rows[i] for i in [*picked, order[-1]]]) <= max_tokens:
            picked.append(order.pop())
        yield picked


def collate(rows: Sequence[PackedRow], pad_id: int = 0) -> PackedBatch:
    """Pad the sequences of rows to one rectangle.

    Raises:
        ShapeError: if the rows differ in their number of cached tokens.
    """
    n_rows, n_choices = len(rows), max(row.n_choices for row in rows)
    if len({row.n_past for row in rows}) > 1:
        raise ShapeError(f"got rows after {sorted({row.n_past for row in rows})} tokens, expected equal numbers")
    [n_past] = {row.n_past for row in rows}
    starts = _starts(rows)
    shape = sum(row.n_sequences for row in rows), _width(rows, starts)
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    segment = torch.full(shape, -1, dtype=torch.long)  # -1 padding, 0 prompt, 1.. choices
    divisor = torch.ones(n_rows, n_choices)
    is_choice = torch.zeros(n_rows, n_choices, dtype=torch.bool)
    owner: list[int] = []
    positions: list[tuple[int, int]] = []
    scored: list[tuple[int, int, int]] = []
    for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
        is_choice[b, : row.n_choices] = True
        divisor[b, : row.n_choices] = torch.tensor(row.divisors)
        end = start + row.prompt_tokens
        end_of_prompt = len(positions)
        positions.append((len(owner), end - 1))
        segment[len(owner), start:end] = 0
        for choices in row.sequences:
            r = len(owner)
            owner.append(b)
            input_ids[r, start:end] = torch.tensor(row.prompt)
            position_ids[r, start:end] = torch.arange(row.prompt_tokens) + n_past
            column = end
            for c in choices:
                tokens = row.continuations[c]
                read = len(tokens) - 1
                input_ids[r, column : column + read] = torch.tensor(tokens[:-1], dtype=torch.long)
                position_ids[r, column : column + read] = torch.arange(read) + n_past + row.prompt_tokens
                segment[r, column : column + read] = c + 1
                places = [end_of_prompt, *range(len(positions), len(positions) + read)]
                positions += [(r, k) for k in range(column, column + read)]
                scored += [(place, token, b * n_choices + c) for place, token in zip(places, tokens, strict=True)]
                column += read
    row_, column_ = torch.tensor(positions, dtype=torch.long).unbind(1)
    place, token_, choice_ = torch.tensor(scored, dtype=torch.long).reshape(-1, 3).unbind(1)
    return PackedBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        n_past=n_past,
        owner=torch.tensor(owner),
        row=row_,
        column=column_,
        place=place,
        token=token_,
        choice=choice_,
        length=choice_.bincount(minlength=n_rows * n_choices).view(n_rows, n_choices),
        divisor=divisor,
        is_choice=is_choice,
        segment=segment,
        separate=rows[0].separate,
        states=_collate_states(rows, starts, shape),
    )


def spread_states(rows: Sequence[PackedRow], states: States) -> list[PackedRow]:
    """Return the rows, each with its part of the states (R, T, D) of their batch from `collate`."""
    parts = [states.values[r, start:stop] for r, start, stop in _spans(rows, _starts(rows))]
    found = []
    for row in rows:
        own, parts = parts[: row.n_sequences], parts[row.n_sequences :]
        found.append(replace(row, states=States(states.layer, torch.cat(own) if len(own) > 1 else own[0])))
    return found


def _collate_states(rows: Sequence[PackedRow], starts: Sequence[int], shape: tuple[int, int]) -> States | None:
    """Return the rows' states in the batch's rectangle, or None unless all rows have states at one layer."""
    found = [row.states for row in rows if row.states is not None]
    if len(found) < len(rows) or len({states.layer for states in found}) > 1:
        return None
    values = found[0].values.new_zeros(*shape, found[0].values.shape[-1])
    spans = _spans(rows, starts)
    parts = torch.cat([states.values for states in found]).split([stop - start for _, start, stop in spans])
    for (r, start, stop), part in zip(spans, parts, strict=True):
        values[r, start:stop] = part
    return States(found[0].layer, values)


def _starts(rows: Sequence[PackedRow]) -> list[int]:
    """Return the first column of each row's sequences."""
    longest = max(row.prompt_tokens for row in rows)
    return [0 if row.separate else longest - row.prompt_tokens for row in rows]


def _width(rows: Sequence[PackedRow], starts: Sequence[int]) -> int:
    """Return T, the columns of a batch."""
    return max(start + row.prompt_tokens + row.choice_columns for start, row in zip(starts, rows, strict=True))


def _spans(rows: Sequence[PackedRow], starts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return each sequence's index, its first column and the one after its last, row after row."""
    lengths = [
        (start, start + row.prompt_tokens + sum(len(row.continuations[c]) - 1 for c in choices))
        for start, row in zip(starts, rows, strict=True)
        for choices in row.sequences
    ]
    return [(r, start, stop) for r, (start, stop) in enumerate(lengths)]
