"""Shared toy targets with known answers: tiny causal language models, a tokenizer of characters, random draws."""

import copy
import functools
import string
from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3nTextConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from blora.base_model import BaseModel, model_fingerprint, reading_digest
from blora.base_model.checkpoint import is_encoder
from blora.base_model.precision import set_precision
from blora.config import BaseModelRef, NormalizationName
from blora.inference.batches import PackedBatch
from blora.inference.fork import branching_layer, runs_in_parts
from blora.inference.packing import PackedRow
from blora.inference.scoring import score_draws, score_rows, states_of
from blora.posterior.draws import Draws, Factors
from blora.posterior.inject import default_targets, inject, select_modules

VOCAB_SIZE = 128
N_LAYERS = 2
MAX_LENGTH = 256

CHAT_TEMPLATE = """\
{% for message in messages %}\
{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}\
{{ message.role }}: {{ message.content }}
{% endfor %}\
{% if add_generation_prompt %}assistant:{% endif %}"""

_DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_DECODER, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_DECODER),
    "qwen3": Qwen3Config(**_DECODER, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=32,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=MAX_LENGTH,
        bos_token_id=1,
        eos_token_id=1,
    ),
    "falcon": FalconConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
    ),
    "gemma2": Gemma2Config(**_DECODER, head_dim=8, final_logit_softcapping=2.0),
    "gpt_neo": GPTNeoConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_layers=N_LAYERS,
        num_heads=4,
        attention_types=[[["global"], N_LAYERS]],  # local layers cannot be packed
        window_size=64,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=1,
        eos_token_id=1,
    ),
    "mixtral": MixtralConfig(**_DECODER, num_local_experts=4),
    "opt": OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
    ),
    "gemma3n_text": Gemma3nTextConfig(
        **_DECODER,
        head_dim=8,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        layer_types=["full_attention"] * N_LAYERS,
        activation_sparsity_pattern=[0.0] * N_LAYERS,
        num_kv_shared_layers=1,
    ),
}

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2")
# Layers that return tuples, capped logits, experts, a decoder inside a decoder.
DECODERS = (*ARCHITECTURES, "falcon", "gemma2", "gpt_neo", "mixtral", "opt")
# Its last layer reads the keys and values of the one before.
UNFORKABLE = "gemma3n_text"


def tiny_model(architecture: str = "llama") -> PreTrainedModel:
    """A fresh copy of a small random model; the same weights every time, no two of them equal, no bias zero."""
    return copy.deepcopy(_tiny_model(architecture))


@functools.cache
def _tiny_model(architecture: str) -> PreTrainedModel:
    return random_model(CONFIGS[architecture], seed=tuple(CONFIGS).index(architecture))


def random_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A random model of any configuration, as `tiny_model`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = (AutoModel if is_encoder(config) else AutoModelForCausalLM).from_config(config)
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = 0.2 * torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and not name.endswith("bias")
        parameter.copy_(1 + noise if is_norm else noise)
    return model


@functools.cache
def tiny_tokenizer(*, bos: bool = True, chat: bool = True, closes: bool = False) -> PreTrainedTokenizerFast:
    """One token a character, so that what a row says can be read back.

    With `bos` it starts every text with <s>, and with `closes` it ends these with <unk>.
    """
    alphabet = ["<pad>", "<s>", "<unk>", "\n", *sorted(set(string.printable) - set(string.whitespace)), " "]
    assert len(alphabet) <= VOCAB_SIZE
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A <unk>" if closes else "<s> $A", special_tokens=[("<s>", 1), ("<unk>", 2)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def spell(ids: Sequence[int]) -> str:
    """The text of token ids of `tiny_tokenizer`."""
    return "".join(tiny_tokenizer().convert_ids_to_tokens(list(ids)))


def tiny_base(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> BaseModel:
    """A tiny model as a base model, not yet injected."""
    return base_of(tiny_model(architecture), architecture, dtype)


def base_of(model: PreTrainedModel, name: str, dtype: torch.dtype = torch.float32) -> BaseModel:
    """A model of that name as a base model, rounded to the dtype."""
    tokenizer = tiny_tokenizer()
    identity, reading = model_fingerprint(model), reading_digest(model, tokenizer)
    set_precision(model, dtype)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        ref=BaseModelRef(id=f"tiny/{name}", revision=None, fingerprint=identity, reading=reading),
        device=torch.device("cpu"),
        dtype=dtype,
        max_length=MAX_LENGTH,
    )


def adapted_modules(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Default targets in every layer, with their (d_out, d_in)."""
    return select_modules(model, default_targets(model), range(N_LAYERS))


def injected(architecture: str = "llama") -> tuple[PreTrainedModel, dict[str, tuple[int, int]]]:
    """A tiny model with a `LoraLinear` around its default targets, and those targets."""
    model = tiny_model(architecture)
    modules = adapted_modules(model)
    inject(model, modules)
    return model, modules


def random_draws(
    modules: dict[str, tuple[int, int]], n_samples: int, *, seed: int = 0, rank: int = 3, scaling: float = 2.0
) -> Draws:
    """Draws large enough to change every answer."""
    generator = torch.Generator().manual_seed(seed)
    return Draws(
        {
            name: Factors(
                0.3 * torch.randn(n_samples, rank, d_in, generator=generator),
                0.3 * torch.randn(n_samples, d_out, rank, generator=generator),
            )
            for name, (d_out, d_in) in modules.items()
        },
        scaling,
        n_samples,
    )


def merged(model: PreTrainedModel, draws: Draws, s: int) -> PreTrainedModel:
    """A copy of an uninjected model with draw s added into its weights: W + scaling B_s A_s."""
    copied = copy.deepcopy(model)
    for name, factors in draws.factors.items():
        module = copied.get_submodule(name)
        delta = draws.scaling * factors.B[s] @ factors.A[s]
        module.weight += delta if isinstance(module, nn.Linear) else delta.mT
    return copied


def random_rows(n_rows: int, *, seed: int = 0, normalization: NormalizationName = "none") -> list[PackedRow]:
    """Questions of different lengths, with two to four choices of one to five tokens."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(integer(0, VOCAB_SIZE - 1) for _ in range(integer(low, high)))

    return [
        PackedRow(tokens(1, 12), tuple(tokens(1, 5) for _ in range(integer(2, 4))), normalization)
        for _ in range(n_rows)
    ]


def score(
    model: PreTrainedModel, batch: PackedBatch, draws: Draws | None, max_batch_tokens: int | None = None
) -> Tensor:
    """(S, B, C) log-probabilities of a batch, from one trunk below the layer in which its draws begin to differ."""
    layer = branching_layer(draws) if draws is not None else None
    if draws is None or layer is None:
        log_probs = score_rows(model, batch, draws.first(1) if draws is not None else None)[None]
        return log_probs.expand(draws.n_samples if draws is not None else 1, -1, -1)
    states = states_of(model, batch, layer, draws) if layer > 0 and runs_in_parts(model) else None
    return score_draws(
        model,
        batch,
        states,
        draws.part,
        start=0,
        stop=draws.n_samples,
        max_batch_tokens=max_batch_tokens,
        memory=lambda start, stop: None,
    )


@torch.no_grad()
def log_prob_alone(model: nn.Module, prompt: Sequence[int], continuation: Sequence[int]) -> Tensor:
    """Log-probability of a continuation after a prompt, from one ordinary unpadded causal forward pass."""
    ids = torch.tensor([[*prompt, *continuation]])
    log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    at = range(len(prompt) - 1, ids.shape[1] - 1)
    return torch.stack([log_probs[t, token] for t, token in zip(at, continuation, strict=True)]).sum()


def choices_alone(model: nn.Module, row: PackedRow) -> Tensor:
    """Log-probabilities over the choices of a row, each scored in a forward pass of its own, (C,)."""
    totals = [
        log_prob_alone(model, row.prompt, tokens) / divisor
        for tokens, divisor in zip(row.continuations, row.divisors, strict=True)
    ]
    return torch.stack(totals).log_softmax(-1).float()
