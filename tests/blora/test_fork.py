"""The model in parts against the model in one piece."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from blora.errors import BaseModelError
from blora.inference.fork import branching_layer, final_states, first_layer, head, states_below
from blora.inference.packing import States, collate
from blora.inference.scoring import score, score_rows, states_of
from blora.posterior.draws import Draws, Factors, use_draws
from blora.posterior.inject import default_targets, inject, layer_index, select_modules
from tests.scenarios import ARCHITECTURES, N_LAYERS, VOCAB_SIZE, random_draws, random_rows, tiny_model

IDS = torch.arange(12).view(2, 6) * 5 % VOCAB_SIZE
INPUTS = {"input_ids": IDS, "position_ids": torch.arange(6).expand(2, 6)}


def adapted_above(model: PreTrainedModel, layer: int) -> dict[str, tuple[int, int]]:
    modules = select_modules(model, default_targets(model.config.model_type), range(layer, N_LAYERS))
    inject(model, modules)
    return modules


@torch.no_grad()
@pytest.mark.parametrize("layer", range(1, N_LAYERS))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_parts_make_the_whole(architecture: str, layer: int) -> None:
    model = tiny_model(architecture)
    expected = model(**INPUTS, use_cache=False).logits
    states = States(layer, states_below(model, layer, None, **INPUTS))
    final = final_states(model, states, **INPUTS)
    torch.testing.assert_close(head(model, final.flatten(0, 1)).view_as(expected), expected, rtol=0, atol=1e-6)
    whole = final_states(model, None, **INPUTS)
    torch.testing.assert_close(whole, final, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_model_itself_stays_as_it_was() -> None:
    model = tiny_model()
    before = dict(model.named_modules())
    states = States(1, states_below(model, 1, None, **INPUTS))
    head(model, final_states(model, states, **INPUTS)[0])
    after = dict(model.named_modules())
    assert before.keys() == after.keys()
    assert all(after[name] is module for name, module in before.items())


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_below_the_fork_run_once_for_all_draws(architecture: str) -> None:
    model = tiny_model(architecture)
    draws = random_draws(adapted_above(model, 1), 5, scaling=0.7)
    batch = collate(random_rows(3))
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    rows_seen: list[list[int]] = [[], []]
    for layer, seen in zip(layers, rows_seen, strict=True):
        layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
    got = score(model, batch, draws)
    assert rows_seen == [[3], [15]]
    slow = score_rows(model, batch, draws, 5).view_as(got)
    torch.testing.assert_close(got, slow, rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_whole_model() -> None:
    model = tiny_model()
    draws = random_draws(adapted_above(model, 1), 1, scaling=0.7)
    leaves = [factor.requires_grad_() for f in draws.factors.values() for factor in (f.A, f.B)]
    rows = random_rows(4)
    batch = collate(rows)
    gradients = []
    for known in (None, states_of(model, batch, 1)):
        object.__setattr__(batch, "states", known)
        loss = score_rows(model, batch, draws)[:, 0].sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    for slow, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_states_from_above_the_first_adapted_layer_are_not_used() -> None:
    """They would be those of the base model, whatever the draw."""
    model = tiny_model()
    draws = random_draws(adapted_above(model, 0), 2, scaling=0.7)
    batch = collate(random_rows(3))
    expected = score(model, batch, draws)
    object.__setattr__(batch, "states", states_of(model, batch, 1))
    torch.testing.assert_close(score(model, batch, draws), expected, rtol=0, atol=0)


@torch.no_grad()
def test_states_of_a_layer_do_not_depend_on_the_draws_in_force() -> None:
    model = tiny_model()
    draws = random_draws(adapted_above(model, 1), 2, scaling=0.7)
    states = states_below(model, 1, None, **INPUTS)
    with use_draws(draws):
        torch.testing.assert_close(states_below(model, 1, None, **INPUTS), states, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_with_plain_lora_run_once_for_all_draws(architecture: str) -> None:
    model = tiny_model(architecture)
    modules = adapted_above(model, 0)
    each = random_draws(modules, 5, scaling=0.7)
    shared = {name: f.part(0, 1) if layer_index(name) == 0 else f for name, f in each.factors.items()}
    draws = Draws(shared, each.scaling, 5)
    assert branching_layer(draws) == 1
    batch = collate(random_rows(3))
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    rows_seen: list[list[int]] = [[], []]
    for layer, seen in zip(layers, rows_seen, strict=True):
        layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
    got = score(model, batch, draws)
    assert rows_seen == [[3], [15]]
    copies = {name: Factors(f.A.expand(5, -1, -1), f.B.expand(5, -1, -1)) for name, f in shared.items()}
    slow = score_rows(model, batch, Draws(copies, each.scaling, 5), 5).view_as(got)
    torch.testing.assert_close(got, slow, rtol=0, atol=1e-5)


@torch.no_grad()
def test_draws_that_are_all_alike_run_once() -> None:
    model = tiny_model()
    one = random_draws(adapted_above(model, 0), 1, scaling=0.7)
    batch = collate(random_rows(3))
    expected = score(model, batch, one)
    assert branching_layer(one) is None
    got = score(model, batch, Draws(one.factors, one.scaling, 4))
    torch.testing.assert_close(got, expected.expand(4, -1, -1), rtol=0, atol=0)


@torch.no_grad()
def test_states_may_go_on_from_lower_ones() -> None:
    model = tiny_model()
    batch = collate(random_rows(3))
    expected = states_of(model, batch, 1)
    object.__setattr__(batch, "states", States(1, expected.values))
    assert states_of(model, batch, 1).values is expected.values


def test_the_first_layer_is_the_lowest_that_is_adapted() -> None:
    assert first_layer(["model.layers.12.self_attn.q_proj", "model.layers.7.mlp.up_proj"]) == 7


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = tiny_model()
    model.model.layers = nn.ModuleDict({"a": nn.Identity()})
    with pytest.raises(BaseModelError, match="unknown name"):
        states_below(model, 1, None, **INPUTS)
