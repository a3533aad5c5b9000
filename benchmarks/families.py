"""Which architectures of transformers can be the base model?

`python -m benchmarks.families` makes a small random model of every type of causal language model and of every encoder
that the installed transformers has, and runs the check that `blora` runs when it loads a base model. It compares the
scores of several choices with those of plain forward passes of each choice alone, and the states of an encoder with
those of a plain pass. What a type is served as, or why it is refused, is the result. Types whose settings are not made
small by their usual names are listed as not tried.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
)

from benchmarks.markdown import markdown_table
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel
from blora.base_model.checkpoint import is_encoder
from blora.base_model.loading import max_length_of, sliding_window_of
from blora.config import BaseModelRef
from blora.errors import BaseModelError
from blora.inference.architecture import check_packing
from blora.inference.batches import collate
from blora.inference.fork import runs_in_parts
from blora.inference.packing import PackedRow
from blora.inference.scoring import inputs_of, score_rows
from blora.inference.unpacked import read_states, way_of
from blora.posterior.inject import n_layers_of

logger = logging.getLogger(__name__)

__all__ = ["RESULT", "VERDICTS", "families", "verdict"]

RESULT = ROOT / "benchmarks" / "results" / "families" / "result.json"
# Decoders of what an encoder has read have a causal form too that is no language model to be asked.
OF_ENCODERS = (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.keys()
    | MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.keys()
    | MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES.keys()
    | {"bart", "bert-generation", "git", "got_ocr2", "mbart", "musicgen_melody", "mvp", "trocr"}
)
VERDICTS = {
    "served": "served",
    "whole": "served; every draw of a LoRA runs every layer",
    "continued": "served; every draw of a LoRA runs every layer, and choices are read one by one",
    "repeated": "served; every draw of a LoRA runs every layer, and each choice is read behind a copy of the prompt",
    "encoder": "served for fixed labels: encoders",
    "refused": "refused",
    "not made": "not tried",
}
N_VOCABULARY = 512
N_LAYERS = 4
# Values of settings, by their usual names in transformers.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), N_VOCABULARY),
    **dict.fromkeys(("pad_token_id", "pad_index"), 0),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "decoder_layers", "n_layers"), N_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "decoder_attention_heads", "n_heads"), 4),
    **dict.fromkeys(("attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("swa_head_dim", "kv_lora_rank", "q_lora_rank", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("word_embed_proj_dim", "rotary_dim", "laurel_rank"), 4),
    **dict.fromkeys(("attention_chunk_size", "index_topk"), 256),
    "sliding_window": 16,
}
_VISION = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "image_size": 32, "patch_size": 16}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
# Settings that depend on the others, by model type; the layers of a hybrid are of both kinds.
FITTING: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "gemma3n_text": {"num_kv_shared_layers": 1, "layer_types": ["full_attention"] * N_LAYERS},
    "gemma3": {"vision_config": {"model_type": "siglip_vision_model", **_VISION}},
    "gpt_neo": {"attention_types": [[["global", "local"], N_LAYERS // 2]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * (N_LAYERS // 2)},
    "lfm2": {"layer_types": ["conv", "full_attention"] * (N_LAYERS // 2)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (N_LAYERS // 2)},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [1],
        "ngram_vocab_size_base": N_VOCABULARY,
        "heads_per_ngram": 2,
        "split_ngram_parts": 1,
        "make_ngram_vocab_size_divisible_by": 8,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * (N_LAYERS // 2)},
    "zaya": {"num_experts_per_tok": 1},
}
# Tokens of the compared prompt, at most, and of each of its choices.
PROMPT, CHOICES = 40, (3, 9, 5)
MOST_WEIGHTS = 20_000_000
TOLERANCE = 1e-3


def small_config(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Return a config of a class with small values of the settings that it has, its parts included."""
    names = {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    aliases = getattr(kind, "attribute_map", {})
    chosen = {name: SMALL[name] for name in names & SMALL.keys() if aliases.get(name) not in names}
    if "kv_lora_rank" in names:  # latent attention has as many keys as queries
        chosen["num_key_value_heads"] = chosen["num_attention_heads"]
    given = FITTING.get(kind.model_type, {})
    parts = {
        name: small_config(part)
        for name, part in kind.sub_configs.items()
        if name not in given and issubclass(part, PreTrainedConfig)
    }
    return kind(**chosen | given | parts)


@torch.no_grad()
def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model of a config whose weights all differ."""
    kind = AutoModel if is_encoder(config) else AutoModelForCausalLM
    with torch.device("meta"):
        n_weights = sum(weight.numel() for weight in kind.from_config(config).parameters())
    if n_weights > MOST_WEIGHTS:
        raise ValueError(f"{n_weights:,} weights, expected at most {MOST_WEIGHTS:,}")
    torch.manual_seed(0)
    model = kind.from_config(config).float().eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = 0.2 * torch.randn(parameter.shape)
        parameter.copy_(1 + noise if parameter.ndim == 1 else noise)
    return model


@torch.no_grad()
def alone(model: PreTrainedModel, row: PackedRow) -> Tensor:
    """Return log-probabilities (C,) over a row's choices, each from a plain forward pass of its own."""
    totals = []
    for tokens, divisor in zip(row.continuations, row.divisors, strict=True):
        logits = model(input_ids=torch.tensor([[*row.prompt, *tokens]]), use_cache=False).logits[0]
        of_choice = logits[len(row.prompt) - 1 : -1].float().log_softmax(-1)
        totals.append(of_choice.gather(1, torch.tensor(tokens)[:, None]).sum() / divisor)
    return torch.stack(totals).log_softmax(0)


@torch.no_grad()
def off(model: PreTrainedModel, rows: Sequence[PackedRow]) -> float:
    """Return the largest difference of an encoder's states in a batch of prompts from those of each prompt alone."""
    end = n_layers_of(model)
    together = read_states(model, [end], **inputs_of(model, collate(rows)))[end]
    found = 0.0
    for row, states in zip(rows, together, strict=True):
        own = model(input_ids=torch.tensor([row.prompt])).last_hidden_state[0]
        found = max(found, float((states[-row.prompt_tokens :] - own).abs().max()))
    return found


def verdict(model_type: str) -> dict[str, str]:
    """Return what becomes of a model type: its verdict, a key of `VERDICTS`, and why."""
    try:
        config = small_config(CONFIG_MAPPING[model_type])
        model = random_model(config)
    except Exception as exc:  # settings that do not go together raise anything
        return {"model_type": model_type, "verdict": "not made", "why": f"{type(exc).__name__}: {exc}"[:300]}
    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)  # the check reads no text
    ref = BaseModelRef(id=model_type, revision=None, fingerprint="", reading="")
    base = BaseModel(model, tokenizer, ref, torch.device("cpu"), torch.float32, max_length_of(model))
    try:
        checked = check_packing(base)
    except BaseModelError as exc:
        return {"model_type": model_type, "verdict": "refused", "why": str(exc)[:300]}
    generator = torch.Generator().manual_seed(1)
    if base.is_encoder:
        prompts = [
            torch.randint(3, N_VOCABULARY, (length,), generator=generator).tolist() for length in (PROMPT, 7, 20)
        ]
        distance = off(model, [PackedRow(tuple(ids), (), "none", readout="linear", outputs=(0, 1)) for ids in prompts])
        if not distance <= TOLERANCE:
            raise AssertionError(f"{model_type} passes the check, and its states are off by {distance:.2g}")
        return {"model_type": model_type, "verdict": "encoder", "why": ""}
    longest = min(PROMPT, checked.max_length - max(CHOICES))
    prompt, *choices = (
        tuple(torch.randint(3, N_VOCABULARY, (length,), generator=generator).tolist()) for length in (longest, *CHOICES)
    )
    row = PackedRow(prompt, tuple(choices), "none")
    with torch.no_grad():
        distance = float((score_rows(model, collate([row]), None)[0] - alone(model, row)).abs().max())
    if not distance <= TOLERANCE:
        raise AssertionError(f"{model_type} passes the check, and its scores are off by {distance:.2g} nats")
    if (way := way_of(model)) is not None:
        return {"model_type": model_type, "verdict": way, "why": ""}
    within = checked.max_length == sliding_window_of(model)
    why = "prompts have to fit into its sliding window" if within else ""
    return {"model_type": model_type, "verdict": "served" if runs_in_parts(model) else "whole", "why": why}


def families(result: dict[str, Any]) -> str:
    """Return the table of the model types by verdict."""

    def names(of: str) -> Iterator[str]:
        return (f"`{found['model_type']}`" for found in result["families"] if found["verdict"] == of)

    rows = [[said, ", ".join(names(of))] for of, said in VERDICTS.items()]
    return (
        f"{markdown_table(['', 'model types'], rows, n_words=2)}\n\n"
        f"Small random models, transformers {result['machine']['transformers']}, revision {result['revision']}; "
        f"`{result['command']}`."
    )


def main() -> None:
    """Try every type, and write the result."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logger.setLevel(logging.INFO)
    found = []
    kinds = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
    for model_type in sorted(kinds - OF_ENCODERS):
        found.append(verdict(model_type))
        logger.info("%s", found[-1])
    result = {
        "families": found,
        **about("python -m benchmarks.families"),
    }
    write(RESULT, result)


if __name__ == "__main__":
    main()
