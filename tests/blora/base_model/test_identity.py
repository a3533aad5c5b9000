"""Settings of published architectures that tell apart base models with equal weights."""

import copy
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPTJConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Starcoder2Config,
)

from blora.base_model import identity, model_fingerprint, reading_digest
from blora.base_model.identity import RARE_SETTINGS, SETTINGS
from tests.scenarios import CONFIGS, DECODERS, MAX_LENGTH, N_LAYERS, VOCAB_SIZE, tiny_model, tiny_tokenizer

SIZES = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 1}
HIDDEN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": N_LAYERS, "num_attention_heads": 4}
STARCODER2 = Starcoder2Config(**SIZES, **HIDDEN, num_key_value_heads=2)
GPT_J = GPTJConfig(**SIZES, n_embd=32, n_layer=N_LAYERS, n_head=4, n_positions=MAX_LENGTH, rotary_dim=8)
LONGROPE = {"rope_type": "longrope", "long_factor": [2.0] * 4, "short_factor": [1.0] * 4}
PHI3 = Phi3Config(
    **SIZES,
    **HIDDEN,
    pad_token_id=0,
    max_position_embeddings=MAX_LENGTH,
    original_max_position_embeddings=MAX_LENGTH // 2,
    rope_parameters=LONGROPE,
)
DEEPSEEK_V3 = DeepseekV3Config(
    **SIZES,
    **HIDDEN,
    num_key_value_heads=4,
    q_lora_rank=8,
    kv_lora_rank=8,
    qk_rope_head_dim=4,
    qk_nope_head_dim=4,
    v_head_dim=8,
    first_k_dense_replace=1,
    moe_intermediate_size=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
)

# Architectures whose settings are all accounted for, beside those of the tests' tiny models.
OTHERS = (
    *("bloom", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma", "gemma3_text", "glm4_moe"),
    *("gpt_neox", "gpt_oss", "gptj", "granitemoe", "llama4_text", "minicpm3", "mistral", "nemotron", "olmo2", "olmoe"),
    *("phi", "phi3", "qwen2_moe", "qwen3_moe", "smollm3", "stablelm", "starcoder2"),
)
# Settings that the shapes and the names of the weights show, given the settings in the digest.
OF_WEIGHTS = {
    *("vocab_size", "vocab_size_per_layer_input", "word_embed_proj_dim", "tie_word_embeddings"),
    *("hidden_size", "n_embd", "intermediate_size", "intermediate_size_mlp", "n_inner", "ffn_dim", "ffn_hidden_size"),
    *("hidden_size_per_layer_input", "laurel_rank", "altup_num_inputs", "q_lora_rank", "kv_lora_rank"),
    *("qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("num_hidden_layers", "n_layer", "num_layers", "num_kv_heads", "multi_query", "new_decoder_architecture"),
    *("bias", "use_bias", "enable_bias", "attention_bias", "mlp_bias", "qkv_bias", "use_qkv_bias"),
    *("layer_norm_elementwise_affine", "num_ln_in_parallel_attn", "qk_layernorm", "add_cross_attention"),
    *("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "first_k_dense_replace", "decoder_sparse_step", "mlp_only_layers"),
    *("moe_layers", "interleave_moe_layer_step"),
}
# Settings from which a config computes others, which are in the digest.
DERIVED_FROM = {
    *("attention_types", "max_window_layers", "sliding_window_pattern", "no_rope_layer_interval"),
    "original_max_position_embeddings",
}
# Settings of training, generation and other tasks, lengths, and ways of computing the same.
OF_OTHER_USES = {
    *("attention_dropout", "attn_pdrop", "classifier_dropout", "dropout", "embd_pdrop", "embed_dropout"),
    *("embedding_dropout", "hidden_dropout", "layerdrop", "resid_dropout", "resid_pdrop", "residual_dropout"),
    *("init_std", "initializer_range", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "is_decoder", "num_nextn_predict_layers"),
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    *("max_position_embeddings", "n_positions", "ignore_keys_at_rope_validation"),
    *("pretraining_tp", "reorder_and_upcast_attn", "slow_but_exact"),
}


@pytest.mark.parametrize("architecture", [*CONFIGS, *OTHERS])
def test_every_setting_is_in_the_digest_or_known_to_need_no_place_there(architecture: str) -> None:
    config = CONFIG_MAPPING[architecture]()
    covered = {*SETTINGS, *RARE_SETTINGS}
    covered |= {config.attribute_map[name] for name in covered if name in config.attribute_map}
    named = {name for name in vars(config) if not name.startswith("_")} - set(vars(PreTrainedConfig()))
    assert named - covered - OF_WEIGHTS - DERIVED_FROM - OF_OTHER_USES == set()


def of(config: PreTrainedConfig, **changes: Any) -> PreTrainedModel:
    """A random model, with the same weights every time."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (STARCODER2, {"norm_epsilon": 0.1}),
        (GPT_J, {"rotary_dim": 4}),
        (PHI3, {"max_position_embeddings": 8 * MAX_LENGTH}),
        (DEEPSEEK_V3, {"routed_scaling_factor": 50.0}),
        (DEEPSEEK_V3, {"n_group": 1}),
        (DEEPSEEK_V3, {"topk_group": 2}),
    ],
)
@torch.no_grad()
def test_equal_weights_that_compute_otherwise_have_another_digest(
    config: PreTrainedConfig, changes: dict[str, Any]
) -> None:
    model, other = of(config), of(config, **changes)
    ids = torch.arange(20)[None]
    assert not torch.allclose(model(ids).logits, other(ids).logits, atol=1e-6)
    assert model_fingerprint(model) == model_fingerprint(other)
    assert reading_digest(model, tiny_tokenizer()) != reading_digest(other, tiny_tokenizer())
    assert reading_digest(model, tiny_tokenizer()) == reading_digest(of(config), tiny_tokenizer())


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_rare_setting_changes_only_the_digests_of_architectures_that_have_it(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(architecture)
    digest = reading_digest(model, tiny_tokenizer())
    monkeypatch.setattr(identity, "RARE_SETTINGS", ())
    has_one = architecture in ("falcon", "gpt_neo")
    assert (reading_digest(model, tiny_tokenizer()) != digest) == has_one


@pytest.mark.parametrize(
    ("template", "otherwise"),
    [
        ("{{ messages[0].content }}", False),
        ("{{ strftime_now('%F') }}{{ messages[0].content }}", True),
        ("{% if enable_thinking %}<think>{% endif %}{{ messages[0].content }}", True),
    ],
)
def test_a_template_that_was_once_rendered_otherwise_has_another_digest(
    template: str, otherwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model(), copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    digest = reading_digest(model, tokenizer)
    monkeypatch.setattr(identity, "_is_rendered_otherwise", lambda tokenizer: False)
    assert (reading_digest(model, tokenizer) != digest) == otherwise


def test_a_tokenizer_whose_closing_token_is_left_out_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(), copy.deepcopy(tiny_tokenizer())
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <unk>", special_tokens=[("<s>", 1), ("<unk>", 2)]
    )
    digest = reading_digest(model, tokenizer)
    monkeypatch.setattr(identity, "_is_rendered_otherwise", lambda tokenizer: False)
    assert reading_digest(model, tokenizer) != digest
