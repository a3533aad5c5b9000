"""Runs of packed rows in models that take no block masks: the prompts, then each choice in a sequence of its own.

A choice continues from what the model remembers of its prompt: keys and values, and recurrent states. Where a model
fails to do so, and in training, the choice is read behind a copy of the prompt instead, in a plain forward pass. The
states of all sequences are put where packed rows have them, so that everything behind a run is as with block masks.
An encoder, in which a token sees the whole text, reads prompts alone.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from blora.inference.checkpoints import between
from blora.inference.fork import states_at
from blora.inference.packing import States
from blora.posterior.draws import active_draws, use_draws
from blora.posterior.inject import n_layers_of

__all__ = ["SEGMENT", "Way", "for_model", "read_states", "states_before_head", "unpack", "way_of"]

Way = Literal["continued", "repeated", "none"]

# Attribute of a model: how it reads choices without block masks; missing or None where it takes such masks.
_WAY = "_blora_reads_choices"
# Most bytes of copies of what is remembered of prompts: 1 GiB. A recurrent state may take as much as many tokens do.
MOST_REMEMBERED = 2**30
# Name of the input that tells the prompt and the choices of a packed row apart: `PackedBatch.segment`.
SEGMENT = "segment"


def unpack(model: PreTrainedModel, way: Way | None) -> None:
    """Set how a model reads choices in all later runs.

    Args:
        model: the model.
        way: `continued` from the prompt, `repeated` behind a copy of it, `none` for an encoder; None for packed.
    """
    setattr(model, _WAY, way)


def way_of(model: PreTrainedModel) -> Way | None:
    """Return how a model reads choices: see `unpack`."""
    way: Way | None = getattr(model, _WAY, None)
    return way


def read_states(
    model: PreTrainedModel, depths: Iterable[int], known: States | None = None, **inputs: Any
) -> dict[int, Tensor]:
    """Return what `states_at` returns, in any model; inputs as from `blora.inference.scoring.inputs_of`."""
    if SEGMENT not in inputs:
        return states_at(model, depths, known, **inputs)
    found = {known.layer: known.values} if known is not None else {}
    deeper = sorted({*depths} - {*found})
    return found | _unpacked(model, deeper, inputs["input_ids"], inputs[SEGMENT]) if deeper else found


def states_before_head(model: PreTrainedModel, known: States | None, inputs: dict[str, Any]) -> States | None:
    """Return the states that enter the output head, for a model that reads no packed choices; `known` for any other."""
    end = n_layers_of(model)
    if SEGMENT not in inputs or (known is not None and known.layer == end):
        return known
    return States(end, read_states(model, [end], **inputs)[end])


def for_model(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs without those that are not the model's own."""
    return {name: given for name, given in inputs.items() if name != SEGMENT}


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the sequences of packed rows (B, T).

    Attributes:
        row: (R,) the packed row of each sequence, ascending.
        place: (R, L) the place of each token among the B * T of the packed rows; -1 for padding.
        kept: (R, L) whether the states of a token are kept; not those of padding and of further copies of a prompt.
    """

    row: Tensor
    place: Tensor
    kept: Tensor

    def ids(self, input_ids: Tensor) -> Tensor:
        """Return the tokens (R, L), 0 for padding."""
        return input_ids.flatten()[self.place.clamp_min(0)] * (self.place >= 0)

    def of(self, rows: Tensor) -> "_Part":
        """Return the sequences of some packed rows."""
        own = torch.isin(self.row, rows)
        return _Part(self.row[own], self.place[own], self.kept[own])

    def copied(self) -> "_Part":
        """Return the same sequences, none of whose states are kept."""
        return replace(self, kept=torch.zeros_like(self.kept))

    def followed_by(self, then: "_Part") -> "_Part":
        """Return the same sequences, each followed by the sequence of its row, if there is one."""
        tail = self.place.new_full((len(self.row), then.place.shape[1]), -1)
        tail[torch.searchsorted(self.row, then.row)] = then.place
        return _Part(self.row, torch.cat([self.place, tail], 1), torch.cat([self.kept, tail >= 0], 1))

    def padded_to_the_right(self) -> "_Part":
        """Return the same sequences with all padding at their ends."""
        order = torch.argsort((self.place < 0).int(), dim=1, stable=True)[:, : int((self.place >= 0).sum(1).max())]
        return _Part(self.row, self.place.gather(1, order), self.kept.gather(1, order))


def _unpacked(model: PreTrainedModel, depths: list[int], input_ids: Tensor, segment: Tensor) -> dict[int, Tensor]:
    """Return the states (B, T, D) of packed rows at several depths."""
    prompts, choices = _prompts(segment), _choices(segment)
    continued = choices and way_of(model) == "continued" and not torch.is_grad_enabled()
    found: dict[int, Tensor] = {}
    for part, states in (_continued if continued else _repeated)(model, depths, input_ids, prompts, choices):
        target = part.place[part.kept]
        for depth, values in states.items():
            if depth not in found:
                found[depth] = values.new_zeros(input_ids.numel(), *values.shape[2:])
            found[depth] = found[depth].index_put((target,), values[part.kept])
    return {depth: values.view(*input_ids.shape, *values.shape[1:]) for depth, values in found.items()}


def _continued(
    model: PreTrainedModel, depths: list[int], input_ids: Tensor, prompts: _Part, choices: list[_Part]
) -> Iterator[tuple[_Part, dict[int, Tensor]]]:
    """Yield parts with their states, choices continued from the prompts.

    Prompts of different lengths take passes of their own, since padding would become part of what a model remembers.
    """
    lengths = prompts.kept.sum(1)
    for length in between(lengths.unique().tolist()):
        part = prompts.of(prompts.row[lengths == length]).padded_to_the_right()
        remembered, rows = DynamicCache(config=model.config), part.row
        yield part, _run(model, depths, part, input_ids, cache=remembered)
        own = [those.padded_to_the_right() for choice in choices if len((those := choice.of(rows)).row)]
        most = MOST_REMEMBERED * len(rows) // max(1, _n_bytes(remembered))
        for part in between(_joined(own, most, input_ids.numel())):
            cache = copy.deepcopy(remembered)
            cache.reorder_cache(torch.searchsorted(rows, part.row))  # type: ignore[arg-type]  # a plain tensor does
            yield part, _run(model, depths, part, input_ids, cache=cache)


def _repeated(
    model: PreTrainedModel, depths: list[int], input_ids: Tensor, prompts: _Part, choices: list[_Part]
) -> Iterator[tuple[_Part, dict[int, Tensor]]]:
    """Yield parts with their states, choices behind copies of the prompts, in plain passes padded to the right."""
    first = prompts.followed_by(choices[0]) if choices else prompts
    further = [prompts.of(choice.row).copied().followed_by(choice) for choice in choices[1:]]
    for part in between([first, *further]):
        part = part.padded_to_the_right()
        yield part, _run(model, depths, part, input_ids)


def _run(
    model: PreTrainedModel, depths: list[int], part: _Part, input_ids: Tensor, cache: DynamicCache | None = None
) -> dict[int, Tensor]:
    """Return the states (R, L, D) of a part at several depths, each sequence under the draw of its row.

    Args:
        model: the model.
        depths: the depths.
        part: the part.
        input_ids: (B, T) tokens of the packed rows.
        cache: what the model remembers of the tokens before, to which it adds; None for nothing.
    """
    draws = active_draws()
    if draws is not None and draws.rows is not None:
        draws = draws.for_rows(draws.rows.to(part.row.device)[part.row])
    inputs: dict[str, Any] = {"cache": cache, "use_cache": True} if cache is not None else {}
    if way_of(model) == "none":
        inputs["attention_mask"] = (part.place >= 0).long()  # a token sees what is behind it, padding included
    with use_draws(draws):
        return states_at(model, depths, input_ids=part.ids(input_ids), **inputs)


def _prompts(segment: Tensor) -> _Part:
    """Return the prompts of packed rows."""
    place = torch.arange(segment.numel(), device=segment.device).view(segment.shape)
    place = place.masked_fill(segment != 0, -1)
    return _Part(torch.arange(len(segment), device=segment.device), place, place >= 0)


def _choices(segment: Tensor) -> list[_Part]:
    """Return the choices of packed rows, padded to the right: the first one that each row reads, the second, ..."""
    every = torch.arange(1, int(segment.max()) + 1, device=segment.device)
    if not len(every):
        return []
    member = segment[:, None, :] == every[:, None]  # (B, C, T)
    length, start = member.sum(-1), member.int().argmax(-1)  # (B, C)
    nth = (length > 0).cumsum(1)
    parts = []
    for n in range(1, int(nth.max()) + 1):
        row, choice = ((nth == n) & (length > 0)).nonzero(as_tuple=True)
        column = torch.arange(int(length[row, choice].max()), device=segment.device)
        place = row[:, None] * segment.shape[1] + start[row, choice, None] + column
        place = place.masked_fill(column >= length[row, choice, None], -1)
        parts.append(_Part(row, place, place >= 0))
    return parts


def _n_bytes(cache: DynamicCache) -> int:
    """Return the size of all that a cache holds."""
    held = [value for layer in cache.layers for value in vars(layer).values()]
    flat = [one for value in held for one in (value.values() if isinstance(value, dict) else [value])]
    return sum(one.nbytes for one in flat if isinstance(one, Tensor))


def _joined(parts: list[_Part], most: int, most_tokens: int) -> Iterator[_Part]:
    """Yield the sequences of one or more parts as one, at most so many sequences, and tokens with padding."""
    some: list[_Part] = []
    n = 0
    for part in sorted(parts, key=_width):  # short ones are not padded to the length of long ones
        n += len(part.row)
        if some and (n > most or n * _width(part) > most_tokens):
            yield _as_one(some)
            some, n = [], len(part.row)
        some.append(part)
    if some:
        yield _as_one(some)


def _width(part: _Part) -> int:
    """Return the number of tokens of the longest sequence."""
    return part.place.shape[1]


def _as_one(parts: list[_Part]) -> _Part:
    """Return the sequences of several parts, ascending in their lengths, as one, those of a row next to each other."""
    row = torch.cat([part.row for part in parts])
    place = row.new_full((len(row), _width(parts[-1])), -1)
    for part, own in zip(parts, place.split([len(part.row) for part in parts]), strict=True):
        own[:, : _width(part)] = part.place
    order = torch.argsort(row, stable=True)
    return _Part(row[order], place[order], place[order] >= 0)
