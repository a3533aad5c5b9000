"""Tests of how an architecture reads choices, packed or each in a sequence of its own, by what changes its logits.

Two computations that should agree are compared as logits at every predicted position. The effect of rounding alone is
measured by repeating a computation, in the same batch and in batches of other shapes. An unsuitable architecture
changes the logits by about their own size. So one test works in every dtype and on every processor.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.base_model import BaseModel
from blora.base_model.loading import max_length_of
from blora.errors import BaseModelError
from blora.inference.batches import PackedBatch, collate
from blora.inference.bounds import (
    MARGIN,
    MAX_BOUND,
    OTHER_SHAPE,
    SAME_SHAPE,
    Moved,
    check_moved,
    distance,
    largest,
    remedy,
)
from blora.inference.encoders import check_encoder
from blora.inference.fork import allow_partial_runs, forbid_partial_runs, logits_at, runs_in_parts
from blora.inference.packing import PackedRow
from blora.inference.prefix import Prefix, common_tokens
from blora.inference.scoring import at_positions, states_of
from blora.inference.unpacked import Way, unpack, way_of
from blora.inference.windows import Window, named_window, use_window
from blora.posterior.inject import n_layers_of

__all__ = ["check_packing"]

logger = logging.getLogger(__name__)

# Most columns in the test of a window that a setting of the model names.
WIDEST = 4096
# Width of the window in the test of sliding windows: less than half of a row of the test.
NARROW = 4
# Ends of settings that name layers with a window, and not the width of one.
OF_LAYERS = ("_layers", "_pattern")
# Ways to read choices in sequences of their own, the cheapest first.
WAYS: tuple[Way, ...] = ("continued", "repeated")
# Logits below this belong to tokens that a model rules out.
RULED_OUT = -1e4


@dataclass(frozen=True, slots=True)
class _Example:
    """Test batch: a row whose last choice repeats the first one behind a long one, and a row that forces padding.

    Attributes:
        row: three choices, the first and the last equal.
        longer: the other row of the batch.
        exchanged: the two rows with other tokens wherever the first and last choice of `row` must not attend.
        pad_id: id of padding tokens.
        exchanged_pad_id: id of padding tokens for the exchanged rows.
    """

    row: PackedRow
    longer: PackedRow
    exchanged: tuple[PackedRow, PackedRow]
    pad_id: int
    exchanged_pad_id: int

    @classmethod
    def of(cls, n_vocabulary: int) -> "_Example":
        """Return an example of random tokens; the exchanged token of each is half a vocabulary away."""
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

    def wider(self, n_columns: int) -> PackedRow:
        """Return `row` with its middle choice repeated over at least this number of columns."""
        first, between, last = self.row.continuations
        n_copies = -(-n_columns // (len(between) - 1))  # the last token of a choice has no column
        return replace(self.row, continuations=(first, *[between] * n_copies, last))


@torch.no_grad()
def check_packing(base: BaseModel) -> BaseModel:
    """Test on a small example that an architecture scores choices together as it scores each choice alone.

    Three tests: exchanging tokens that a choice must not see (other choices, padding, other rows) does not change its
    logits; a choice that occurs twice in a row has equal logits both times, also in a row that is wider than a window
    which a setting of the model names; and these equal the logits of the choice alone behind its prompt, in a plain
    forward pass. The tests also find out whether the model can be run in parts; if not, every layer runs for every
    draw, and a warning is logged.

    A model that fails with packed choices, as one with recurrent layers does, passes the same tests with each choice in
    a sequence of its own: see `blora.inference.unpacked`. It runs whole, and a warning is logged.

    An encoder is tested otherwise: see `check_encoder`.

    A model with a sliding window passes the same tests in rows beyond the window, or its rows stay within the window,
    and a warning is logged.

    Returns:
        The base model, whose `max_length` no longer counts a window that passed.

    Raises:
        BaseModelError: if a test fails either way, for example for models that see later tokens, or that overflow in
            the dtype, or if the device has too little memory for them.
    """
    if base.is_encoder:
        return check_encoder(base)
    model, example = base.model, _Example.of(base.model.config.get_text_config().vocab_size)
    forbid_partial_runs(model, "the packing check is running")
    unpack(model, None)
    try:
        batch, together, bound = _check_alike(base, example)
    except BaseModelError as exc:
        if _for_want_of_memory(exc):
            raise
        return _one_by_one(base, example)
    allow_partial_runs(model)
    if reason := _reason_to_run_whole(model, example, batch, together, bound):
        forbid_partial_runs(model, reason)
        logger.warning(
            "%s cannot be run in parts, so every layer runs for every draw, at several times the cost: %s",
            base.ref.id,
            reason,
        )
    return _beyond_window(base, example)


def _one_by_one(base: BaseModel, example: _Example) -> BaseModel:
    """Return a base model that reads each choice in a sequence of its own, in the first way that passes the tests.

    Raises:
        BaseModelError: if none passes.
    """
    for way in WAYS:
        unpack(base.model, way)
        try:
            _check_alike(base, example)
        except BaseModelError as exc:
            if way == WAYS[-1] or _for_want_of_memory(exc):
                unpack(base.model, None)
                raise
        else:
            break
    forbid_partial_runs(base.model, "it takes no block masks")
    logger.warning(
        "%s takes no block masks, so choices are read one by one%s, and every layer runs for every draw, at several "
        "times the cost; a linear head reads no choices",
        base.ref.id,
        ", each behind a copy of the prompt" if way == "repeated" else "",
    )
    return replace(base, max_length=max_length_of(base.model, beyond_window=True))


def _for_want_of_memory(error: BaseModelError) -> bool:
    """Return whether a test failed because the device has too little memory, which tells nothing about the model."""
    return isinstance(error.__cause__, torch.OutOfMemoryError)


def _check_alike(base: BaseModel, example: _Example) -> tuple[PackedBatch, Tensor, float]:
    """Check that a model scores the choices of an example as it scores each choice alone.

    Returns:
        The example as a batch, its centered logits, and the change of these that rounding explains.

    Raises:
        BaseModelError: if it scores them otherwise.
    """
    model = base.model
    try:
        alone = _alone(model, example.row)
        if not alone.isfinite().all():
            raise BaseModelError(
                f"got {base.ref.id}, which gives no finite numbers in {base.dtype_name}, expected logits: use "
                f"{remedy(base)}"
            )
        batch = collate([example.row, example.longer], example.pad_id)
        together = _logits(model, batch)
        rounding = _rounding(model, batch, together, example.row)
        moved = list(_displacements(model, example, batch, together, alone, OTHER_SHAPE[base.dtype]))
    except BaseModelError:
        raise
    except Exception as exc:  # an unsuitable architecture may raise anything
        raise BaseModelError(
            f"got {base.ref.id}, which fails on a batch of choices in {base.dtype_name} ({type(exc).__name__}: {exc}), "
            f"expected a decoder in which a token depends on those before it alone: use {remedy(base)}"
        ) from exc
    check_moved(base, moved, rounding, what="logits", fault="a token depends on more than those before it")
    return batch, together, OTHER_SHAPE[base.dtype] + MARGIN * rounding


def _beyond_window(base: BaseModel, example: _Example) -> BaseModel:
    """Return a base model whose rows may be longer than its sliding window, if these pass the tests too."""
    model, window = base.model, named_window(base.model)
    longest = max_length_of(model, beyond_window=True)
    if window is None or window.width >= longest:
        return base
    if reason := _reason_to_stay_within(model, window, example, OTHER_SHAPE[base.dtype]):
        logger.warning(
            "%s reads no more tokens than its sliding window has, %d, because longer rows fail: %s",
            base.ref.id,
            window.width,
            reason,
        )
        return base
    use_window(model, window)
    return replace(base, max_length=longest)


def _reason_to_stay_within(model: PreTrainedModel, window: Window, example: _Example, other_shape: float) -> str | None:
    """Return why rows longer than a model's sliding window cannot be used, or None.

    The tests run in a narrow window, because in a wide one they would take minutes, and hiding a few of thousands of
    tokens would change less than rounding. A narrow window stands for the model's own, because the library reads the
    width from the settings in every forward pass, also of a choice alone, and a layer hides what its mask hides. (The
    width that a layer keeps is for attention kernels that take no block masks.) A model that fixes its width or mask
    when it is made differs from the narrow window, and fails.
    """
    config = model.config.get_text_config()
    try:
        config.sliding_window = NARROW
        use_window(model, replace(window, width=NARROW))
        batch = collate([example.row, example.longer], example.pad_id)
        together = _logits(model, batch)
        rounding = MARGIN * _rounding(model, batch, together, example.row)
        moved = _displacements(model, example, batch, together, _alone(model, example.row), other_shape)
        for cause, change, allowed in moved:
            if not change <= allowed + rounding <= MAX_BOUND:  # NaN fails the test
                return f"{cause} changes the logits by {change:.2g} of their standard deviation"
        if not runs_in_parts(model):
            return None
        return _reason_to_run_whole(model, example, batch, together, other_shape + rounding)
    except Exception as exc:  # an unsuitable architecture may raise anything
        return f"{type(exc).__name__}: {exc}"
    finally:
        config.sliding_window = window.width
        use_window(model, None)


def _displacements(
    model: PreTrainedModel, example: _Example, batch: PackedBatch, together: Tensor, alone: Tensor, other_shape: float
) -> Iterator[Moved]:
    """Yield each cause, its change of the logits of the row's first and last choice, and the allowed change."""
    first, last = _predicting_positions(batch, 0), _predicting_positions(batch, 2)
    exchanged = _logits(model, collate(example.exchanged, example.exchanged_pad_id))
    both = torch.cat([first, last])
    yield "exchanging tokens hidden from a choice", distance(exchanged[both], together[both]), SAME_SHAPE
    yield "the position of a choice in its row", distance(together[last], together[first]), other_shape
    if way_of(model) is None and (window := _window(model)):
        row = example.wider(window)
        far = _ends(model, row)
        yield f"the position of a choice in a row of {row.n_tokens} tokens", distance(*far), other_shape
    yield "packing", distance(together[first], alone), other_shape


def _alone(model: PreTrainedModel, row: PackedRow) -> Tensor:
    """Return the centered logits of the first choice alone behind its prompt, in a plain forward pass."""
    ids = torch.tensor([[*row.prompt, *row.continuations[0]]], device=model.device)
    return _centered(model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1])


def _window(model: PreTrainedModel) -> int:
    """Return the largest window that a setting of the model names, 0 if none does.

    The sliding window is left out, because it limits the positions of a row or passes tests of its own. A layer with
    another window may hide a distant column of a packed row, although its position is near.
    """
    settings = model.config.get_text_config().to_dict()
    named = {name: value for name, value in settings.items() if "window" in name and name != "sliding_window"}
    found = [value for name, value in named.items() if type(value) is int and not name.endswith(OF_LAYERS)]
    return min(max(found, default=0), WIDEST)


def _ends(model: PreTrainedModel, row: PackedRow) -> tuple[Tensor, Tensor]:
    """Return the centered logits of the last and the first choice of a row."""
    batch = collate([row])
    first, last = _predicting_positions(batch, 0), _predicting_positions(batch, row.n_choices - 1)
    both = torch.cat([last, first])  # the output head computes no others
    logits = _logits(model, replace(batch, row=batch.row[both], column=batch.column[both]))
    return logits[: len(last)], logits[len(last) :]


def _rounding(model: PreTrainedModel, batch: PackedBatch, together: Tensor, row: PackedRow) -> float:
    """Return the change of logits by rounding alone, over repeated batches and batches of one to three copies."""
    one, two, three = (_logits(model, collate([row] * n)) for n in (1, 2, 3))
    n = len(one)
    pairs = [(_logits(model, batch), together), (two[:n], one), (three[:n], one)]
    return largest([distance(a, b) for a, b in pairs])


def _reason_to_run_whole(
    model: PreTrainedModel, example: _Example, batch: PackedBatch, whole: Tensor, bound: float
) -> str | None:
    """Return why a model cannot be run in parts (by layers, on repeated states, after a cached prefix), or None."""
    try:
        for layer in range(1, n_layers_of(model)):
            batch = replace(batch, states=states_of(model, batch, layer))
        parts = _logits(model, batch, repeats=2)
        rows = [example.row, example.longer]
        n_past = common_tokens([row.prompt for row in rows])
        memory = Prefix(model, example.row.prompt[:n_past], None).memory(0, 1)
        rest = collate([row.after(n_past) for row in rows], example.pad_id)
        after = _centered(at_positions(logits_at, model, rest, None, 1, memory)[0])
    except Exception as exc:  # a layer may raise anything if it misses results of another one
        return f"a part of it fails when run alone ({type(exc).__name__}: {exc})"
    change = largest([distance(found, whole) for found in (*parts.chunk(2), after)])
    if change <= bound:
        return None
    return (
        f"running its parts changes the logits by {change:.2g} of their standard deviation; rounding explains "
        f"{bound:.2g}"
    )


def _predicting_positions(batch: PackedBatch, choice: int) -> Tensor:
    """Return the positions that predict a choice of the first row, in the order of its tokens."""
    return batch.place[batch.choice == choice]


def _logits(model: PreTrainedModel, batch: PackedBatch, repeats: int = 1) -> Tensor:
    """Return centered logits (repeats * P, V) at the predicting positions of a batch."""
    return _centered(at_positions(logits_at, model, batch, batch.states, repeats).flatten(0, 1))


def _centered(logits: Tensor) -> Tensor:
    logits = logits.float().masked_fill(logits < RULED_OUT, 0)
    return logits - logits.mean(-1, keepdim=True)
