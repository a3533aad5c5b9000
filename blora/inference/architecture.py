"""Proofs that an architecture does what packing and forking rely on, by what moves its logits and what does not.

Two computations that should agree are compared as logits at every predicted position. What rounding alone may move is
measured beside them, by the very same computation repeated and in batches of another shape, and what an architecture
that fails would move is of the size of the logits themselves. So one proof holds in every dtype and on every processor.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.base_model import BaseModel
from blora.errors import BaseModelError
from blora.inference.fork import keep_whole, logits_at, take_apart
from blora.inference.packing import PackedBatch, PackedRow, collate
from blora.inference.prefix import Prefix, common_tokens
from blora.inference.scoring import at_positions, states_of

__all__ = ["check_packing"]

logger = logging.getLogger(__name__)

# Most that logits may move, in their own standard deviations, beside what rounding was seen to move: between products
# of one shape, and between products of different shapes. A mask or positions that are ignored move them by 0.4 to 1.
SAME_SHAPE = 1e-3
OTHER_SHAPE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
# How often what rounding was seen to move.
MARGIN = 3.0
# Bound beyond which nothing would be proved.
MAX_BOUND = 0.35
# Logits below are those of tokens that a model rules out.
RULED_OUT = -1e4


@dataclass(frozen=True, slots=True)
class _Example:
    """A row whose first choice comes once more behind a long one, beside a row that makes it need padding.

    Attributes:
        row: three choices, of which the first and the last are the same.
        longer: its neighbour in the batch.
        exchanged: the same two rows with other tokens wherever the first and last choice of the row must not look.
        pad_id, exchanged_pad_id: of padding.
    """

    row: PackedRow
    longer: PackedRow
    exchanged: tuple[PackedRow, PackedRow]
    pad_id: int
    exchanged_pad_id: int

    @classmethod
    def of(cls, n_vocabulary: int) -> "_Example":
        """Return an example of random tokens; half a vocabulary away lies a token to exchange each for."""
        generator = torch.Generator().manual_seed(0)

        def tokens(n: int) -> tuple[int, ...]:
            return tuple(torch.randint(n_vocabulary, (n,), generator=generator).tolist())

        def other(ids: tuple[int, ...]) -> tuple[int, ...]:
            return tuple((token + n_vocabulary // 2) % n_vocabulary for token in ids)

        prompt, choice, between = tokens(8), tokens(4), tokens(6)
        row = PackedRow(prompt, (choice, between, choice), "none")
        longer = PackedRow((*prompt, *tokens(5)), (tokens(4), tokens(5)), "none")
        exchanged = (
            replace(row, continuations=(choice, other(between), choice)),
            PackedRow(other(longer.prompt), tuple(map(other, longer.continuations)), "none"),
        )
        return cls(row, longer, exchanged, 0, n_vocabulary // 2)


@torch.no_grad()
def check_packing(base: BaseModel) -> None:
    """Prove on a small example that an architecture scores packed choices as it scores each alone.

    Three proofs: what a choice must not see (other choices, padding, other rows) does not move its logits when it is
    exchanged; a choice that stands in a row twice has the same logits twice; and they are those of the choice alone
    behind its prompt, by the plainest forward pass. Whether the model may be run in parts is found out along the way:
    one that may not computes every layer for every draw, and a warning says so.

    Raises:
        BaseModelError: if one proof fails, as for models without attention masks or with positions of their own.
    """
    model = base.model
    example = _Example.of(model.config.get_text_config().vocab_size)
    keep_whole(model, "the packing check is running")
    try:
        batch = collate([example.row, example.longer], example.pad_id)
        together = _logits(model, batch)
        rounding = _rounding(model, batch, together, example.row)
        moved = list(_moved(model, example, batch, together, OTHER_SHAPE[base.dtype]))
    except BaseModelError:
        raise
    except Exception as exc:  # an architecture of another kind may raise anything
        raise BaseModelError(
            f"got {base.ref.id}, which fails on packed choices ({type(exc).__name__}: {exc}), expected a decoder that "
            "takes block attention masks and position ids; use another model"
        ) from exc
    for cause, distance, allowed in moved:
        bound = allowed + MARGIN * rounding
        if bound > MAX_BOUND:
            raise BaseModelError(
                f"got {base.ref.id}, whose logits move by {rounding:.2g} of their standard deviation where nothing but "
                "rounding may, expected less; its forward pass depends on chance or on the batch and cannot be used"
            )
        if not distance <= bound:  # not a number is no proof
            raise BaseModelError(
                f"got {base.ref.id}, in which {cause} moves the logits by {distance:.2g} of their standard deviation, "
                f"expected at most {bound:.2g}, which rounding explains; this architecture does not honour block "
                "attention masks and position ids and cannot be used"
            )
    take_apart(model)
    if reason := _why_whole(model, example, batch, together, OTHER_SHAPE[base.dtype] + MARGIN * rounding):
        keep_whole(model, reason)
        logger.warning(
            "%s runs whole, every layer for every draw, which costs several times as much: %s", base.ref.id, reason
        )


def _moved(
    model: PreTrainedModel, example: _Example, batch: PackedBatch, together: Tensor, other_shape: float
) -> Iterator[tuple[str, float, float]]:
    """What must not move the logits of the row's first and last choice, how far it does, and what is allowed."""
    first, last = _places(batch, 0), _places(batch, 2)
    exchanged = _logits(model, collate(example.exchanged, example.exchanged_pad_id))
    both = torch.cat([first, last])
    yield "what a choice must not see", _distance(exchanged[both], together[both]), SAME_SHAPE
    yield "the place of a choice in its row", _distance(together[last], together[first]), other_shape
    ids = torch.tensor([[*example.row.prompt, *example.row.continuations[0]]], device=model.device)
    alone = _centered(model(input_ids=ids, use_cache=False).logits[0, len(example.row.prompt) - 1 : -1])
    yield "packing", _distance(together[first], alone), other_shape


def _rounding(model: PreTrainedModel, batch: PackedBatch, together: Tensor, row: PackedRow) -> float:
    """How far rounding alone moves logits: the same batch again, and a row in batches of one to three of itself."""
    one, two, three = (_logits(model, collate([row] * n)) for n in (1, 2, 3))
    n = len(one)
    pairs = [(_logits(model, batch), together), (two[:n], one), (three[:n], one)]
    return _largest([_distance(a, b) for a, b in pairs])


def _why_whole(
    model: PreTrainedModel, example: _Example, batch: PackedBatch, whole: Tensor, bound: float
) -> str | None:
    """Why a model may not be run in parts: one layer at a time, copies of the states, after a remembered beginning."""
    try:
        for layer in range(1, model.config.get_text_config().num_hidden_layers):
            batch = replace(batch, states=states_of(model, batch, layer))
        parts = _logits(model, batch, repeats=2)
        rows = [example.row, example.longer]
        n_past = common_tokens([row.prompt for row in rows])
        memory = Prefix(model, example.row.prompt[:n_past], None).memory(0, 1)
        rest = collate([row.after(n_past) for row in rows], example.pad_id)
        after = _centered(at_positions(logits_at, model, rest, None, 1, memory)[0])
    except Exception as exc:  # whatever a layer raises that misses what another leaves behind
        return f"a part of it fails alone ({type(exc).__name__}: {exc})"
    distance = _largest([_distance(found, whole) for found in (*parts.chunk(2), after)])
    if distance <= bound:
        return None
    return (
        f"its parts move the logits by {distance:.2g} of their standard deviation, where rounding explains {bound:.2g}"
    )


def _places(batch: PackedBatch, choice: int) -> Tensor:
    """The positions that predict a choice of the first row, in the order of its tokens."""
    return batch.place[batch.choice == choice]


def _logits(model: PreTrainedModel, batch: PackedBatch, repeats: int = 1) -> Tensor:
    """Logits (repeats * P, V) at the positions of a batch, without the constant that no probability depends on."""
    return _centered(at_positions(logits_at, model, batch, batch.states, repeats).flatten(0, 1))


def _centered(logits: Tensor) -> Tensor:
    logits = logits.float().masked_fill(logits < RULED_OUT, 0)
    return logits - logits.mean(-1, keepdim=True)


def _largest(distances: list[float]) -> float:
    """The largest of several; not a number if one is not, which Python's own max may lose."""
    return torch.tensor(distances).max().item()


def _distance(found: Tensor, expected: Tensor) -> float:
    """Root mean square of a difference, in standard deviations of what is expected."""
    return ((found - expected).square().mean() / expected.square().mean()).sqrt().item()
