"""Rows after a beginning that is remembered, against the same rows read from the start."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blora.errors import ShapeError
from blora.inference import architecture
from blora.inference import prefix as prefix_module
from blora.inference.architecture import check_packing
from blora.inference.batches import collate
from blora.inference.branches import Branches, score_all
from blora.inference.fork import forbid_partial_runs, runs_in_parts
from blora.inference.packing import PackedRow
from blora.inference.prefix import MIN_PREFIX, Prefix, common_tokens
from blora.inference.scoring import states_of
from blora.posterior.draws import Draws
from blora.posterior.inject import inject, layer_index
from tests.scenarios import DECODERS, adapted_modules, random_draws, random_rows, tiny_base, tiny_model

N_SAMPLES = 5
HEAD = tuple(range(3, 3 + MIN_PREFIX + 8))


def rows_after(head: tuple[int, ...], n_rows: int = 5) -> list[PackedRow]:
    return [replace(row, prompt=head + row.prompt) for row in random_rows(n_rows)]


def adapted(architecture: str, where: str) -> tuple[PreTrainedModel, Draws]:
    """A posterior in both layers, in the upper one over plain LoRA below, in the upper one alone, or plain LoRA."""
    model = tiny_model(architecture)
    modules = adapted_modules(model)
    if where == "upper layer":
        modules = {name: shape for name, shape in modules.items() if layer_index(name) != 0}
    inject(model, modules)
    draws = random_draws(modules, N_SAMPLES, scaling=0.7)
    factors = {
        name: f.part(0, 1) if where == "plain" or (where == "over plain" and layer_index(name) == 0) else f
        for name, f in draws.factors.items()
    }
    return model, Draws(factors, draws.scaling, N_SAMPLES)


def log_probs(model: PreTrainedModel, rows: Sequence[PackedRow], draws: Draws, prefix: Prefix | None) -> Tensor:
    return Branches(model, rows, [draws], [0] * len(rows), prefix).score(range(len(rows)), 0, N_SAMPLES)


def runs(model: PreTrainedModel) -> list[list[tuple[int, int]]]:
    """Rows and tokens that every layer reads from now on, a list a layer."""
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    seen: list[list[tuple[int, int]]] = [[] for _ in layers]
    for layer, shapes in zip(layers, seen, strict=True):
        layer.register_forward_pre_hook(lambda _, args, shapes=shapes: shapes.append(tuple(args[0].shape[:2])))
    return seen


@pytest.mark.parametrize("where", ["both layers", "over plain", "upper layer", "plain"])
@pytest.mark.parametrize("architecture", DECODERS)
def test_what_comes_after_scores_as_the_whole(architecture: str, where: str) -> None:
    model, draws = adapted(architecture, where)
    rows = rows_after(HEAD)
    expected = log_probs(model, rows, draws, None)
    prefix = Prefix(model, HEAD, draws, max_batch_tokens=2 * len(HEAD))  # two draws at once
    torch.testing.assert_close(log_probs(model, rows, draws, prefix), expected, rtol=0, atol=2e-5)
    part = Branches(model, rows, [draws], [0] * 5, prefix).score([3, 1], 2, 4, max_batch_tokens=60)
    torch.testing.assert_close(part, expected[2:4, [3, 1], : part.shape[-1]], rtol=0, atol=2e-5)


def test_it_is_read_once_below_the_draws_and_once_a_draw_above() -> None:
    model, draws = adapted("llama", "over plain")
    seen = runs(model)
    prefix = Prefix(model, HEAD, draws)
    rows = rows_after(HEAD, 2)
    branches = Branches(model, rows, [draws], [0, 0], prefix)
    for start, stop in ((0, 2), (0, 2), (2, 5)):
        branches.score([0, 1], start, stop)
    rest = max(row.n_tokens for row in rows) - len(HEAD)
    assert seen[0] == [(1, len(HEAD)), (2, rest)]
    assert seen[1] == [(2, len(HEAD)), (4, rest), (4, rest), (3, len(HEAD)), (6, rest)]


def test_draws_that_are_made_one_after_the_other_are_those_made_at_once() -> None:
    model, draws = adapted("llama", "both layers")
    slowly, at_once = (Prefix(model, HEAD, draws, max_batch_tokens=bound) for bound in (1, None))
    for start, stop in ((0, 3), (1, 5)):
        pairs = zip(
            slowly.memory(start, stop).layers.values(), at_once.memory(start, stop).layers.values(), strict=True
        )
        for some, same in pairs:
            assert some[0].shape[0] == stop - start
            for kept, expected in zip(some, same, strict=True):
                torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


def test_running_out_of_memory_halfway_leaves_all_layers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draws = adapted("llama", "both layers")
    prefix, whole = Prefix(model, HEAD, draws), Prefix(model, HEAD, draws).memory(0, 5)
    prefix.memory(0, 2)
    real, n_calls = torch.cat, 0

    def fails_once(*args: object, **options: object) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(prefix_module.torch, "cat", fails_once)
        with pytest.raises(torch.OutOfMemoryError):
            prefix.memory(0, 4)
    for layer, pair in prefix.memory(0, 5).layers.items():
        for kept, expected in zip(pair, whole.layers[layer], strict=True):
            torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("where", "below", "above"), [("both layers", 0, 2), ("over plain", 1, 1), ("plain", 2, 0)])
def test_its_memory_is_told_beforehand(where: str, below: int, above: int) -> None:
    model, draws = adapted("llama", where)
    pair = 2 * 2 * 8 * 4 * len(HEAD)  # keys and values of 2 heads of 8 float32
    prefix = Prefix(model, HEAD, draws)
    assert prefix.n_bytes(5) == pair * (below + 5 * above)
    layers = prefix.memory(0, 5).layers.values()
    assert prefix.n_bytes(5) == sum(kept.numel() * 4 for pair in layers for kept in pair)


def test_known_states_of_rows_serve_after_a_beginning_too() -> None:
    model, draws = adapted("llama", "upper layer")
    rows = rows_after(HEAD, 3)
    expected = log_probs(model, rows, draws, None)
    known = [
        replace(row, states=replace(states, values=states.values[0]))
        for row in rows
        for states in [states_of(model, collate([row]), 1)]
    ]
    seen = runs(model)
    prefix = Prefix(model, HEAD, draws)
    torch.testing.assert_close(log_probs(model, known, draws, prefix), expected, rtol=0, atol=2e-5)
    assert seen[0] == [(1, len(HEAD))]


def test_the_divisors_and_tokens_of_choices_stay_those_of_the_row() -> None:
    [row] = random_rows(1, normalization="question")
    whole = replace(row, prompt=HEAD + row.prompt)
    assert whole.after(len(HEAD)) == replace(row, n_past=len(HEAD))
    assert collate([whole.after(len(HEAD))]).position_ids.min() == len(HEAD)


def test_rows_after_different_beginnings_are_no_batch() -> None:
    one, other = rows_after(HEAD, 2)
    with pytest.raises(ShapeError, match=r"after \[4, 5\] tokens, expected equal numbers"):
        collate([one.after(4), other.after(5)])


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2), (1, 2, 4), (1, 2, 5)], 1),  # every prompt keeps a token
        ([(1, 2, 3), (1, 2, 3)], 2),
        ([(1, 9, 3), (1, 2, 3), (1, 2, 4)], 1),
        ([(1,), (2,)], 0),
        ([(1, 2), ()], 0),
    ],
)
def test_what_prompts_have_in_common(prompts: list[tuple[int, ...]], expected: int) -> None:
    assert common_tokens(prompts) == expected


# Many rows


def test_a_beginning_of_all_rows_is_read_once() -> None:
    model, draws = adapted("llama", "over plain")
    rows = rows_after(HEAD, 6)
    expected = log_probs(model, rows, draws, None)
    seen = runs(model)
    got = score_all(model, rows, draws, max_batch_tokens=200)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    assert sum(shape == (1, len(HEAD)) for shape in seen[0]) == 1
    assert max(tokens for _, tokens in seen[0][1:]) < len(HEAD)


@pytest.mark.parametrize("why", ["too short", "one row", "kept whole"])
def test_it_is_read_with_each_row_where_there_is_nothing_to_gain(why: str) -> None:
    model, draws = adapted("llama", "over plain")
    rows = rows_after(HEAD[: MIN_PREFIX - 1] if why == "too short" else HEAD, 1 if why == "one row" else 4)
    if why == "kept whole":
        forbid_partial_runs(model, "a test")
    seen = runs(model)
    score_all(model, rows, draws, max_batch_tokens=200)
    assert all(tokens >= MIN_PREFIX for _, tokens in seen[0])


def test_a_model_whose_beginnings_make_something_else_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    check_packing(base)
    assert runs_in_parts(base.model)

    def forgetful(model: PreTrainedModel, tokens: Sequence[int], draws: Draws | None) -> Prefix:
        return Prefix(model, [0] * len(tokens), draws)

    monkeypatch.setattr(architecture, "Prefix", forgetful)
    check_packing(base)
    assert not runs_in_parts(base.model)
