"""The identity of a base model: digests of its published weights and of how it reads text, wherever they came from."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from blora.posterior.layer import LoraLinear

__all__ = ["digest_of_files", "first_position", "model_fingerprint", "reading_digest"]

# Values of each tensor that the digest covers.
N_VALUES = 8
# Settings of a model's config that change its states or scores, and that no parameter's shape shows.
SETTINGS = (
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "hidden_activation", "activation_function"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    *("rope_parameters", "partial_rotary_factor", "no_rope_layers", "layer_types", "sliding_window"),
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    *("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "clip_qkv", "alibi"),
    *("use_parallel_residual", "parallel_attn", "do_layer_norm_before"),
    *("num_experts_per_tok", "norm_topk_prob"),
)
# More such settings, each of a few architectures. A name counts only in a config that sets it, so a further name leaves
# the digests of all other architectures as they are.
RARE_SETTINGS = (
    *("activation", "afn", "activation_sparsity_pattern", "swiglu_alpha", "swiglu_limit"),
    *("norm_epsilon", "eps", "apply_residual_connection_post_layernorm", "use_qk_norm"),
    *("rotary_dim", "rope_interleave", "layer_rope_theta"),
    *("window_size", "sliding_window_size", "local_attention", "attention_layers", "attention_chunk_size"),
    *("use_sliding_window", "use_bidirectional_attention", "index_topk", "num_kv_shared_layers"),
    *("relative_attention", "pos_att_type", "position_buckets", "max_relative_positions", "position_biased_input"),
    *("share_att_key", "norm_rel_ebd"),
    *("attn_scale", "attn_temperature_tuning", "floor_scale", "attention_value_scale"),
    *("scale_embedding", "scale_emb", "scale_depth", "dim_model_base", "mup_enabled"),
    *("altup_active_idx", "altup_coef_clip", "altup_correct_scale"),
    *("n_group", "num_expert_group", "topk_group", "topk_method", "scoring_func", "expert_selection_fn"),
    *("moe_k", "moe_topk", "top_k_experts", "num_experts_per_token", "moe_renormalize", "moe_norm_min"),
    *("routed_scaling_factor", "moe_routed_scaling_factor", "router_scaling_factor", "route_scale"),
    *("moe_router_logit_softcapping", "moe_apply_router_weight_on_input", "shared_expert_combination_strategy"),
)
# Kinds of rotary embedding that scale attention by the most positions, which otherwise only limit a text's length.
SCALED_BY_LENGTH = ("yarn", "longrope")
# Texts whose tokens show how a tokenizer normalises, splits and frames text, beyond its vocabulary.
PROBES = ("a", " Two  words,\n\tA1 20,000 % it's", "Ünïcode: ﬁ é e\u0301 Ω 東京 العربية 🙂", "{x} <|im_start|> </s>")


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return a digest that identifies a model's published weights, independent of the folder they came from.

    The digest covers every parameter's name and shape, and a few of its values rounded to bfloat16. The digest
    distinguishes models but does not protect against forgery. A release of transformers that renames or fuses
    parameters changes the digest, but not the revision of a `BaseModelRef`.
    """
    return _digest(_original_parameters(model))


def reading_digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of how a model reads text: what turns a text into scores, apart from the weights.

    The digest covers the tokenizer's vocabulary, its tokens for the beginning and the end, its tokens of a few texts,
    the chat template, and settings of the model's config, see `SETTINGS`. Numbers are rounded to six digits, because
    formats of files store them in different precisions. A tokenizer whose closing token is left out, or whose template
    is rendered for one date or without thoughts, has another digest than before these rules.
    """
    config = model.config.get_text_config()
    contents = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "ends": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "tokens": [_tokens(tokenizer, text) for text in PROBES],
        "chat_template": tokenizer.chat_template,
        "settings": _settings(config),
    }
    if _is_rendered_otherwise(tokenizer):
        contents["rendering"] = 2
    if first := first_position(model):
        contents["first_position"] = first
    return f"sha256:{hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()}"


def first_position(model: PreTrainedModel) -> int:
    """Return the index of the first token's position: 0, or in RoBERTa and its kin the one behind the padding's."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return padding + 1 if padding is not None else 0


def _is_rendered_otherwise(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether blora renders texts otherwise than the tokenizer: see `encode` and `blora.inference.chat`."""
    framed, bare = _tokens(tokenizer, "a"), _tokens(tokenizer, "a", special=False)
    closes = bool(framed and bare and framed[-1] != bare[-1])
    return closes or any(name in str(tokenizer.chat_template) for name in ("strftime_now", "enable_thinking"))


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int] | None:
    """Return the tokens of a text; None from a tokenizer that refuses what its vocabulary lacks."""
    try:
        return [*tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]
    except Exception:  # the libraries behind tokenizers raise errors of any type
        return None


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of a config that the digest covers."""
    rope = str(getattr(config, "rope_parameters", None))
    length = ["max_position_embeddings"] if any(kind in rope for kind in SCALED_BY_LENGTH) else []
    rare = {name: getattr(config, name, None) for name in (*RARE_SETTINGS, *length)}
    return {name: _rounded(getattr(config, name, None)) for name in SETTINGS} | {
        name: _rounded(value) for name, value in rare.items() if value is not None and value is not False
    }


def _rounded(value: Any) -> Any:
    """Return a setting as JSON holds it, with six digits of each number."""
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return f"{value:.6g}" if isinstance(value, int | float) else value


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        flat = tensor.detach().reshape(-1)
        picks = torch.linspace(0, flat.numel() - 1, min(N_VALUES, flat.numel()), dtype=torch.float64)
        values = flat[picks.long().to(flat.device)].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}{values.tolist()}".encode())
    return f"sha256:{digest.hexdigest()}"


def digest_of_files(folder: Path) -> str | None:
    """Return the digest of the tensors in a folder's safetensors, under their published names.

    The result equals the `model_fingerprint` if transformers keeps these names, and is None without safetensors files.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:  # maps the file: only the sampled values are read
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # safe_open is not a dictionary
    return _digest(sorted(tensors.items())) if tensors else None


def _original_parameters(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters under their names before modules were wrapped in `LoraLinear`."""
    wrapped = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    parameters = []
    for name, parameter in model.named_parameters():
        owner = next((w for w in wrapped if name.startswith(f"{w}.base.")), None)
        parameters.append((name.replace(f"{owner}.base.", f"{owner}.") if owner else name, parameter))
    return sorted(parameters, key=lambda item: item[0])
