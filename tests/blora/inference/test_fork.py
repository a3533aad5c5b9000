"""The model in parts against the model in one piece."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    LongcatFlashConfig,
    MllamaForCausalLM,
    MllamaTextConfig,
    PreTrainedModel,
)

from blora.errors import BaseModelError
from blora.inference.architecture import check_packing
from blora.inference.batches import collate
from blora.inference.fork import (
    branching_layer,
    first_layer,
    forbid_partial_runs,
    hidden_at,
    logits_at,
    runs_in_parts,
    states_at,
)
from blora.inference.packing import States
from blora.inference.scoring import score_rows, states_of
from blora.posterior.draws import Draws, Factors, use_draws
from blora.posterior.inject import decoder_layers, default_targets, inject, layer_index, n_layers_of, select_modules
from tests.scenarios import (
    CONFIGS,
    DECODERS,
    N_LAYERS,
    UNFORKABLE,
    VOCAB_SIZE,
    choices_alone,
    merged,
    random_draws,
    random_rows,
    score,
    tiny_base,
    tiny_model,
)

IDS = torch.arange(12).view(2, 6) * 5 % VOCAB_SIZE
INPUTS = {"input_ids": IDS, "position_ids": torch.arange(6).expand(2, 6)}


def adapted_above(model: PreTrainedModel, layer: int) -> dict[str, tuple[int, int]]:
    modules = select_modules(model, default_targets(model), range(layer, N_LAYERS))
    inject(model, modules)
    return modules


def logits_from(model: PreTrainedModel, known: States | None) -> Tensor:
    """Logits (B, T, V) at every position."""
    row, column = torch.meshgrid(torch.arange(2), torch.arange(6), indexing="ij")
    return logits_at(model, known, row.flatten(), column.flatten(), **INPUTS).view(2, 6, -1)


@torch.no_grad()
@pytest.mark.parametrize("layer", range(1, N_LAYERS + 1))
@pytest.mark.parametrize("architecture", DECODERS)
def test_the_parts_make_the_whole(architecture: str, layer: int) -> None:
    model = tiny_model(architecture)
    expected = model(**INPUTS, use_cache=False).logits
    states = States(layer, states_at(model, [layer], **INPUTS)[layer])
    torch.testing.assert_close(logits_from(model, states), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits_from(model, None), expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "falcon"])
def test_any_number_of_layers_may_lie_below(architecture: str) -> None:
    config = copy.deepcopy(CONFIGS[architecture])
    config.num_hidden_layers = 5
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).eval()
    expected = model(**INPUTS, use_cache=False).logits
    states = None
    for layer in (1, 2, 4):
        states = States(layer, states_at(model, [layer], states, **INPUTS)[layer])
        torch.testing.assert_close(logits_from(model, states), expected, rtol=0, atol=1e-6)
        found = logits_at(model, states, *PICKED, **INPUTS)
        torch.testing.assert_close(found, expected[PICKED], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", [*DECODERS, UNFORKABLE])
def test_states_that_enter_the_output_head_need_no_layer(architecture: str) -> None:
    model = tiny_model(architecture)
    end = States(N_LAYERS, states_at(model, [N_LAYERS], **INPUTS)[N_LAYERS])
    torch.testing.assert_close(hidden_at(model, end, *PICKED, **INPUTS), hidden_at(model, None, *PICKED, **INPUTS))
    expected = logits_at(model, None, *PICKED, **INPUTS)
    for layer in decoder_layers(model)[1]:
        layer.register_forward_pre_hook(lambda *_: pytest.fail("a layer ran"))
    torch.testing.assert_close(logits_at(model, end, *PICKED, **INPUTS), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_head_sees_no_other_positions() -> None:
    model = tiny_model()
    seen: list[torch.Size] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    logits = logits_at(model, None, torch.tensor([0, 1, 1]), torch.tensor([5, 0, 3]), **INPUTS)
    assert seen == [(1, 3, 32)]
    assert logits.shape == (3, VOCAB_SIZE)


PICKED = (torch.tensor([1, 0, 1, 1]), torch.tensor([0, 5, 3, 2]))  # three positions of one row, one of the other


@torch.no_grad()
@pytest.mark.parametrize("known", [None, 1])
@pytest.mark.parametrize("architecture", DECODERS)
def test_the_last_layer_is_right_where_it_is_computed(architecture: str, known: int | None) -> None:
    model = tiny_model(architecture)
    draws = random_draws(adapted_above(model, 1), 2, scaling=0.7)
    states = States(known, states_at(model, [known], **INPUTS)[known]) if known is not None else None
    with use_draws(draws):
        expected = model(**INPUTS, use_cache=False).logits[PICKED]
        got = logits_at(model, states, *PICKED, **INPUTS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.fixture
def two_attentions() -> PreTrainedModel:
    """A model whose layers hold two attentions, the second one above the first, so that its settings count them twice."""
    small = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "ffn_hidden_size": 48,
    }
    attention = {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "head_dim": 8,
    }
    experts = {"n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2, "expert_ffn_hidden_size": 16}
    config = LongcatFlashConfig(**small, **attention, **experts, num_key_value_heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_a_last_layer_whose_parts_follow_each_other_is_right(two_attentions: PreTrainedModel) -> None:
    expected = two_attentions(**INPUTS, use_cache=False).logits[PICKED]
    torch.testing.assert_close(logits_at(two_attentions, None, *PICKED, **INPUTS), expected, rtol=0, atol=1e-5)


def test_layers_are_counted_in_the_list(two_attentions: PreTrainedModel) -> None:
    assert (two_attentions.config.num_hidden_layers, n_layers_of(two_attentions)) == (4, 2)
    check_packing(replace(tiny_base(), model=two_attentions))
    assert runs_in_parts(two_attentions)


@torch.no_grad()
def test_the_last_layer_computes_at_those_positions_alone() -> None:
    model = tiny_model()
    seen: list[torch.Size] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    logits_at(model, None, *PICKED, **INPUTS)
    forbid_partial_runs(model, "a test")
    logits_at(model, None, *PICKED, **INPUTS)
    assert seen == [(2, 6, 32), (2, 3, 32), (2, 6, 32), (2, 6, 32)]


def test_gradients_of_a_narrowed_layer_are_those_of_all_of_it() -> None:
    model = tiny_model()
    draws = random_draws(adapted_above(model, 0), 1, scaling=0.7)
    leaves = [factor.requires_grad_() for f in draws.factors.values() for factor in (f.A, f.B)]
    with use_draws(draws):
        whole = model(**INPUTS, use_cache=False).logits[PICKED].square().sum()
        narrowed = logits_at(model, None, *PICKED, **INPUTS).square().sum()
    pairs = zip(torch.autograd.grad(whole, leaves), torch.autograd.grad(narrowed, leaves), strict=True)
    for slow, fast in pairs:
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_model_itself_stays_as_it_was() -> None:
    model = tiny_model()
    before = dict(model.named_modules())
    logits_from(model, States(1, states_at(model, [1], **INPUTS)[1]))
    after = dict(model.named_modules())
    assert before.keys() == after.keys()
    assert all(after[name] is module for name, module in before.items())


@torch.no_grad()
@pytest.mark.parametrize("architecture", DECODERS)
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
    slow = score_rows(model, collate(random_rows(3) * 5), draws).view_as(got)
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
    states = states_at(model, [1], **INPUTS)[1]
    with use_draws(draws):
        torch.testing.assert_close(states_at(model, [1], **INPUTS)[1], states, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", DECODERS)
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
    slow = score_rows(model, collate(random_rows(3) * 5), Draws(copies, each.scaling, 5)).view_as(got)
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
def test_no_run_fills_a_cache_of_its_own() -> None:
    model, given = tiny_model(), []
    model.config.use_cache = True
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *call: given.extend(call[2].values()), with_kwargs=True)
    states_at(model, [1], **INPUTS)
    logits_at(model, None, *PICKED, **INPUTS)
    assert given
    assert not [one for one in given if isinstance(one, Cache)]


@torch.no_grad()
def test_states_may_go_on_from_lower_ones() -> None:
    model = tiny_model()
    batch = collate(random_rows(3))
    expected = states_of(model, batch, 1)
    object.__setattr__(batch, "states", States(1, expected.values))
    assert states_of(model, batch, 1).values is expected.values


@torch.no_grad()
def test_a_skipped_layers_states_are_those_of_the_next_one() -> None:
    """Llama 3.2 Vision skips its cross-attention layers where a row has no picture."""
    small = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    crossed = {"num_hidden_layers": 6, "cross_attention_layers": [1, 3], "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        model = MllamaForCausalLM(MllamaTextConfig(**small, **crossed, num_key_value_heads=2)).eval()
    expected = model(**INPUTS, output_hidden_states=True).hidden_states
    found = states_at(model, [1, 3, 4, 6], **INPUTS)
    assert torch.equal(found[3], found[4])
    assert torch.equal(found[3], states_at(model, [3], **INPUTS)[3])
    for depth, states in {1: expected[1], 3: expected[2], 6: expected[-1]}.items():
        torch.testing.assert_close(found[depth], states, rtol=0, atol=1e-6)


def test_the_first_layer_is_the_lowest_that_is_adapted() -> None:
    assert first_layer(["model.layers.12.self_attn.q_proj", "model.layers.7.mlp.up_proj"]) == 7


@torch.no_grad()
def test_a_model_kept_whole_runs_every_layer_for_every_draw() -> None:
    model = tiny_model()
    draws = random_draws(adapted_above(model, 1), 5, scaling=0.7)
    batch = collate(random_rows(3))
    expected = score(model, batch, draws)
    assert runs_in_parts(model)
    forbid_partial_runs(model, "a test")
    assert not runs_in_parts(model)
    rows_seen: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: rows_seen.append(len(args[0])))
    torch.testing.assert_close(score(model, batch, draws), expected, rtol=0, atol=1e-5)
    assert rows_seen == [15]


@torch.no_grad()
def test_the_decoders_layers_are_found_beside_those_of_another_sense() -> None:
    model = tiny_model()
    expected = states_at(model, [1], **INPUTS)[1]
    eyes = nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])})
    model._modules = {"eyes": eyes, **model._modules}
    torch.testing.assert_close(states_at(model, [1], **INPUTS)[1], expected, rtol=0, atol=0)


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    model = tiny_model()
    model.model.layers = nn.ModuleDict({"a": nn.Identity()})
    with pytest.raises(BaseModelError, match="unknown name"):
        states_at(model, [1], **INPUTS)[1]


def test_a_model_that_runs_other_layers_is_refused() -> None:
    model = tiny_model()
    model.model._modules = {"blocks": nn.ModuleList([nn.Identity()] * 2), **model.model._modules}
    with pytest.raises(BaseModelError, match="does not run its list of layers"):
        states_at(model, [1], **INPUTS)[1]


def test_a_model_without_output_embeddings_is_refused() -> None:
    model = tiny_model()
    model.lm_head = None
    with pytest.raises(BaseModelError, match="no output embeddings"):
        logits_from(model, None)


# The check of an architecture


@torch.no_grad()
def test_a_model_whose_layers_share_more_than_states_is_kept_whole() -> None:
    base = tiny_base(UNFORKABLE)
    modules = select_modules(base.model, ["q_proj", "o_proj"], [1])
    inject(base.model, modules)
    check_packing(base)
    assert not runs_in_parts(base.model)
    draws = random_draws(modules, 3, scaling=0.7)
    rows = random_rows(5)
    got = score(base.model, collate(rows), draws)
    for s in range(3):
        plain = merged(tiny_model(UNFORKABLE), draws, s)
        for b, row in enumerate(rows):
            expected = choices_alone(plain, row)
            torch.testing.assert_close(got[s, b, : row.n_choices], expected, rtol=0, atol=1e-4)
    assert (got[0, :, 0] - got[1, :, 0]).abs().max() > 0.1


@torch.no_grad()
def test_a_model_whose_layers_are_unknown_is_kept_whole() -> None:
    base = tiny_base()
    base.model.model._modules = {"blocks": nn.ModuleList([nn.Identity()] * 2), **base.model.model._modules}
    check_packing(base)
    assert not runs_in_parts(base.model)
