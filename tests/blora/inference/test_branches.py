"""Rows of several adapters in one forward pass, under ever more draws, against each row alone under all of them."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from blora.errors import ShapeError
from blora.inference.batches import collate
from blora.inference.branches import Branches
from blora.inference.fork import forbid_partial_runs
from blora.posterior.draws import Draws
from blora.posterior.inject import inject, layer_index, linear_modules
from blora.posterior.joined import join
from tests.scenarios import DECODERS, injected, random_draws, random_rows, score, tiny_model

N_SAMPLES = 5
OWNER = (2, 0, 1, 2, 0, 3)


def adapters(modules: dict[str, tuple[int, int]]) -> list[Draws]:
    """Of different ranks, scalings and modules: in all layers, with plain LoRA below, above the first layer, plain."""
    upper = {name: shape for name, shape in modules.items() if layer_index(name) != 0}
    whole = random_draws(modules, N_SAMPLES, seed=1, rank=3, scaling=0.7)
    mixed = random_draws(modules, N_SAMPLES, seed=2, rank=2, scaling=0.4)
    lower = {name: f.part(0, 1) if layer_index(name) == 0 else f for name, f in mixed.factors.items()}
    plain = random_draws(modules, 1, seed=4, rank=4, scaling=0.5)
    return [
        whole,
        Draws(lower, mixed.scaling, N_SAMPLES),
        random_draws(upper, N_SAMPLES, seed=3, rank=1),
        Draws(plain.factors, plain.scaling, N_SAMPLES),
    ]


@torch.no_grad()
@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("bound", [None, 1, 200])
@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (1, 2), (2,), (3, 3)])
def test_rows_get_what_their_own_adapter_gives_alone(
    architecture: str, bound: int | None, chosen: tuple[int, ...]
) -> None:
    assert_each_row_as_alone(*injected(architecture), chosen, bound)


@torch.no_grad()
def test_rows_get_the_same_where_a_module_flattens_them() -> None:
    model = tiny_model("opt")  # fc1 and fc2 read (rows * tokens, D)
    modules = linear_modules(model)
    inject(model, modules)
    assert_each_row_as_alone(model, modules, (0, 1, 2, 3))


def assert_each_row_as_alone(
    model: PreTrainedModel, modules: dict[str, tuple[int, int]], chosen: tuple[int, ...], bound: int | None = None
) -> None:
    known = [adapters(modules)[u] for u in chosen]
    rows = random_rows(len(OWNER))
    owner = [u % len(chosen) for u in OWNER]
    got = Branches(model, rows, known, owner).score(range(len(rows)), 0, N_SAMPLES, max_batch_tokens=bound)
    assert got.shape[:2] == (N_SAMPLES, len(rows))
    for b, row in enumerate(rows):
        alone = score(model, collate([row]), known[owner[b]])[:, 0]
        torch.testing.assert_close(got[:, b, : row.n_choices], alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_model_kept_whole_gives_the_same() -> None:
    model, modules = injected()
    known, rows = adapters(modules)[1:3], random_rows(3)
    parts = Branches(model, rows, known, [0, 1, 0]).score(range(3), 0, N_SAMPLES)
    forbid_partial_runs(model, "a test")
    whole = Branches(model, rows, known, [0, 1, 0]).score(range(3), 0, N_SAMPLES)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("chosen", [(0, 1, 2, 3), (1,), (3,)])
def test_fewer_rows_go_on_to_later_draws_and_get_the_same(architecture: str, chosen: tuple[int, ...]) -> None:
    model, modules = injected(architecture)
    known, rows = [adapters(modules)[u] for u in chosen], random_rows(6)
    branches = Branches(model, rows, known, [b % len(chosen) for b in range(6)])
    everything = branches.score(range(6), 0, N_SAMPLES)
    for picked, start, stop in (([0, 1, 2, 3, 4, 5], 0, 2), ([4, 1, 3], 2, 4), ([3], 4, 5)):
        got = branches.score(picked, start, stop)
        for place, row in enumerate(picked):
            n_choices = rows[row].n_choices
            torch.testing.assert_close(
                got[:, place, :n_choices], everything[start:stop, row, :n_choices], rtol=0, atol=2e-5
            )


@torch.no_grad()
def test_layers_below_every_draw_run_once_for_all_of_them() -> None:
    model, modules = injected()
    known = adapters(modules)[1:3]
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    seen: list[list[int]] = [[], []]
    for layer, rows in zip(layers, seen, strict=True):
        layer.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(len(args[0])))
    branches = Branches(model, random_rows(4), known, [0, 1, 1, 0])
    branches.score(range(4), 0, 2)
    branches.score([2], 2, N_SAMPLES)
    assert seen == [[4], [4 * 2, N_SAMPLES - 2]]


def test_factors_that_no_adapter_draws_anew_are_joined_once_for_each_adapter() -> None:
    _, modules = injected()
    joined = join(adapters(modules)[1:3])  # the first has plain LoRA in layer 0, the second has none there
    slices = {layer_index(name): {len(f.A), len(f.B)} for name, f in joined.factors.items()}
    assert slices == {0: {2}, 1: {2 * N_SAMPLES}}
    with pytest.raises(ShapeError, match="bound to 10 rows"):
        joined.part(0, 2)


def test_adapters_with_other_numbers_of_draws_are_not_joined() -> None:
    _, modules = injected()
    with pytest.raises(ShapeError, match=r"\[2, 3\] draws to join"):
        join([random_draws(modules, 2), random_draws(modules, 3)])
