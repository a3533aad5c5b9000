import concurrent.futures
import copy
import threading

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    HunYuanMoEV1Config,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from blora.base_model.precision import set_precision
from blora.errors import ConfigError, ShapeError
from blora.posterior.draws import Draws, use_draws
from blora.posterior.inject import (
    default_targets,
    eject,
    inject,
    layer_index,
    linear_targets,
    parse_layers,
    select_modules,
)
from blora.posterior.layer import LoraLinear
from tests.scenarios import (
    ARCHITECTURES,
    N_LAYERS,
    VOCAB_SIZE,
    adapted_modules,
    injected,
    merged,
    random_draws,
    tiny_model,
)

# Every linear module of a decoder layer.
ALL_TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3"),
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
}


# The size of other models.
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": N_LAYERS, "num_attention_heads": 2}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def token_ids(n_rows: int = 2, n_tokens: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB_SIZE, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor, draws: Draws | None = None) -> Tensor:
    with use_draws(draws):
        return model(input_ids=ids, use_cache=False).logits


# Names


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.layers.0.self_attn.q_proj", 0),
        ("transformer.h.11.attn.c_attn", 11),
        ("layers.3", 3),
        ("lm_head", None),
        ("model.embed_tokens", None),
        ("model.mylayers.3.q_proj", None),
    ],
)
def test_layer_index_is_read_from_the_name(name: str, index: int | None) -> None:
    assert layer_index(name) == index


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", (0, 1, 2, 3)),
        ("last:1", (3,)),
        ("last:4", (0, 1, 2, 3)),
        ("2", (2,)),
        ("0-2", (0, 1, 2)),
        ("3-3", (3,)),
    ],
)
def test_layer_specs(spec: str, expected: tuple[int, ...]) -> None:
    assert parse_layers(spec, 4) == expected


@pytest.mark.parametrize("spec", ["", "first:2", "last:", "1,2", "-1", "1-", "last:-1", "all ", "0x1"])
def test_layer_specs_of_another_form_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="expected all, last:N, N or FIRST-LAST"):
        parse_layers(spec, 4)


@pytest.mark.parametrize("spec", ["4", "last:5", "last:0", "2-4", "3-1"])
def test_layers_that_do_not_exist_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=f"got layers '{spec}' of a model with 4, expected indices within 0-3"):
        parse_layers(spec, 4)


def test_default_targets_are_pefts() -> None:
    assert default_targets(tiny_model("llama")) == ("q_proj", "v_proj")
    assert default_targets(tiny_model("gpt2")) == ("c_attn",)


def test_linear_targets_are_every_linear_module_of_the_layers() -> None:
    assert linear_targets(tiny_model()) == (
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
    )


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen3_moe", ("q_proj", "v_proj")),
        ("gemma4", ("q_proj", "v_proj")),  # PEFT's default is a pattern
        ("phi3", ("qkv_proj",)),
        ("minicpm3", ("q_b_proj", "kv_b_proj")),
    ],
)
def test_else_default_targets_are_queries_and_values(model_type: str, expected: tuple[str, ...]) -> None:
    sizes = {"vocab_size": VOCAB_SIZE, "num_key_value_heads": 2, "pad_token_id": 0}
    kind = CONFIG_MAPPING["gemma4_text" if model_type == "gemma4" else model_type]
    model = random_model(kind(**SMALL, **sizes))
    model.config.model_type = model_type
    assert default_targets(model) == expected
    assert select_modules(model, expected, range(N_LAYERS))


def test_an_architecture_without_default_targets_is_refused() -> None:
    model = tiny_model("gpt2")
    model.config.model_type = "nonesuch"
    said = r"got model type 'nonesuch'.*, expected some of \['c_attn', 'c_fc', 'c_proj'\]: .*--target-modules"
    with pytest.raises(ConfigError, match=said):
        default_targets(model)


# Selection


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_modules_are_selected_with_their_shapes_in_the_given_layers(architecture: str) -> None:
    model = tiny_model(architecture)
    selected = select_modules(model, default_targets(model), [1])
    if architecture == "gpt2":
        assert selected == {"transformer.h.1.attn.c_attn": (96, 32)}
    else:
        assert selected == {
            "model.layers.1.self_attn.q_proj": (32, 32),
            "model.layers.1.self_attn.v_proj": (16, 32),
        }


def test_a_target_may_be_a_longer_part_of_the_name() -> None:
    selected = select_modules(tiny_model("gpt2"), ["mlp.c_proj"], range(N_LAYERS))
    assert list(selected) == ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]


def test_a_target_is_never_matched_inside_a_word() -> None:
    with pytest.raises(ConfigError, match=r"\['proj'\]"):
        select_modules(tiny_model(), ["proj"], range(N_LAYERS))


def test_a_target_that_matches_nothing_is_refused_and_the_possible_ones_are_named() -> None:
    with pytest.raises(ConfigError, match=r"\['c_attn'\] that match no linear module in layers \[0, 1\].*'q_proj'"):
        select_modules(tiny_model(), ["q_proj", "c_attn"], range(N_LAYERS))


def test_a_target_outside_the_decoder_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\['lm_head'\]"):
        select_modules(tiny_model(), ["lm_head"], range(N_LAYERS))


def test_only_the_text_decoder_of_a_multimodal_model_is_adapted() -> None:
    text = Gemma3TextConfig(**SMALL, vocab_size=VOCAB_SIZE, num_key_value_heads=2, head_dim=8)
    vision = SiglipVisionConfig(**SMALL, image_size=28, patch_size=14)
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4)
    model = random_model(config)
    assert linear_targets(model) == linear_targets(tiny_model())
    assert list(select_modules(model, ["q_proj"], [1])) == ["model.language_model.layers.1.self_attn.q_proj"]
    with pytest.raises(ConfigError, match=r"\['fc1'\] that match no linear module"):  # of the images' encoder
        select_modules(model, ["fc1"], [1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_injected_model_selects_as_it_did_before(architecture: str) -> None:
    model, modules = injected(architecture)
    assert adapted_modules(model) == modules


def test_an_injected_model_still_names_the_possible_targets() -> None:
    model, _ = injected()
    with pytest.raises(ConfigError, match="'q_proj'") as info:
        select_modules(model, ["c_attn"], range(N_LAYERS))
    assert "'base'" not in str(info.value)


# Injection


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_draws_an_injected_model_is_the_base_bit_for_bit(architecture: str) -> None:
    model, _ = injected(architecture)
    assert torch.equal(logits(model, token_ids()), logits(tiny_model(architecture), token_ids()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["default", "all"])
def test_draws_side_by_side_are_the_passes_of_merged_models(architecture: str, targets: str) -> None:
    base = tiny_model(architecture)
    if targets == "all":
        modules = select_modules(base, ALL_TARGETS[architecture], range(N_LAYERS))
    else:
        modules = adapted_modules(base)
    model = tiny_model(architecture)
    inject(model, modules)
    draws = random_draws(modules, 3)
    ids = token_ids()
    together = logits(model, ids.repeat(3, 1), draws).unflatten(0, (3, 2))
    for s in range(3):
        torch.testing.assert_close(together[s], logits(merged(base, draws, s), ids), rtol=0, atol=1e-4)
        torch.testing.assert_close(together[s], logits(model, ids, draws.part(s, s + 1)), rtol=0, atol=1e-4)
        assert (together[s] - logits(base, ids)).abs().max() > 0.1
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "config",
    [
        PhimoeConfig(**SMALL, vocab_size=VOCAB_SIZE, num_key_value_heads=2, num_local_experts=4),
        HunYuanMoEV1Config(**SMALL, vocab_size=VOCAB_SIZE, num_key_value_heads=2, head_dim=8, num_experts=4),
    ],
    ids=lambda config: config.model_type,
)
def test_linear_modules_beside_a_router_of_another_kind_are_adapted(config: PreTrainedConfig) -> None:
    """Phi-3.5-MoE's is a linear layer that returns a tuple; Hunyuan's reads the dtype of its linear layer's weight."""
    base = random_model(config)
    model, modules = copy.deepcopy(base), select_modules(base, linear_targets(base), range(N_LAYERS))
    inject(model, modules)
    draws = random_draws(modules, 1)
    expected = logits(merged(base, draws, 0), token_ids())
    torch.testing.assert_close(logits(model, token_ids(), draws), expected, rtol=0, atol=1e-4)
    set_precision(base, torch.bfloat16)
    inject(base, modules)
    assert logits(base, token_ids(), draws).isfinite().all()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_one_draw_answers_as_a_peft_lora_with_the_same_factors(architecture: str) -> None:
    model, modules = injected(architecture)
    draws = random_draws(modules, 1, rank=4, scaling=1.5)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=list(modules), fan_in_fan_out=architecture == "gpt2")
    with torch.random.fork_rng(devices=[]):
        peft_model = inject_adapter_in_model(config, tiny_model(architecture)).eval()
    with torch.no_grad():
        for name, factors in draws.factors.items():
            layer = peft_model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(factors.A[0])
            layer.lora_B["default"].weight.copy_(factors.B[0])
    expected = logits(peft_model, token_ids())
    torch.testing.assert_close(logits(model, token_ids(), draws), expected, rtol=0, atol=1e-5)
    assert (expected - logits(tiny_model(architecture), token_ids())).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eject_restores_the_base(architecture: str) -> None:
    base = tiny_model(architecture)
    model = tiny_model(architecture)
    modules = adapted_modules(model)
    originals = {name: model.get_submodule(name) for name in modules}
    inject(model, modules)
    eject(model)
    assert all(model.get_submodule(name) is module for name, module in originals.items())
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert list(model.state_dict()) == list(base.state_dict())
    assert torch.equal(logits(model, token_ids(), random_draws(modules, 2)), logits(base, token_ids()))


def test_injecting_twice_is_injecting_once() -> None:
    model, modules = injected()
    inject(model, modules)
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == len(modules)
    assert not any(isinstance(layer.base, LoraLinear) for layer in layers)


def test_adapters_of_different_modules_share_one_injected_model() -> None:
    base = tiny_model()
    model = tiny_model()
    first = select_modules(base, ["q_proj"], [0])
    second = select_modules(base, ["q_proj", "down_proj"], [1])
    inject(model, first)
    inject(model, second)
    for modules in (first, second):
        draws = random_draws(modules, 1)
        expected = logits(merged(base, draws, 0), token_ids())
        torch.testing.assert_close(logits(model, token_ids(), draws), expected, rtol=0, atol=1e-4)


def test_rows_that_the_draws_do_not_divide_are_refused() -> None:
    model, modules = injected()
    with pytest.raises(ShapeError, match=r"got 4 rows.*multiple of 3 draws"):
        logits(model, token_ids(4), random_draws(modules, 3))


def test_threads_with_different_draws_do_not_mix() -> None:
    model, modules = injected()
    n_threads, n_iterations = 3, 60
    work = [
        (None, token_ids(2)),
        (random_draws(modules, 2, seed=1), token_ids(2)),
        (random_draws(modules, 1, seed=2), token_ids(2)),
    ]
    expected = [logits(model, ids, draws) for draws, ids in work]
    barrier = threading.Barrier(n_threads)

    def run(k: int) -> float:
        draws, ids = work[k]
        barrier.wait(timeout=30)
        differences = [(logits(model, ids, draws) - expected[k]).abs().max().item() for _ in range(n_iterations)]
        return max(differences)

    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        differences = list(pool.map(run, range(n_threads)))
    assert max(differences) < 1e-5
    assert (expected[1] - expected[2]).abs().max() > 0.1
