"""Encoders: a prompt is read by itself, whatever is in its batch, and no choices are scored."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import (
    BertConfig,
    DistilBertConfig,
    FNetConfig,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    YosoConfig,
)

from blora.base_model import BaseModel
from blora.base_model.loading import max_length_of
from blora.config import HeadConfig, PromptConfig
from blora.errors import BaseModelError, PromptError
from blora.inference.architecture import check_packing
from blora.inference.branches import n_shared
from blora.inference.fork import runs_in_parts
from blora.inference.packing import PackedRow, pack
from blora.inference.reading import read_rows
from blora.posterior.draws import NO_LORA, use_draws
from blora.posterior.inject import default_targets, inject, n_layers_of, select_modules
from tests.scenarios import VOCAB_SIZE, base_of, random_draws, random_model, tiny_base, tiny_tokenizer

N_LAYERS, LONGEST = 3, 64
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**_SIZES),
    "distilbert": DistilBertConfig(
        vocab_size=VOCAB_SIZE, dim=32, n_layers=N_LAYERS, n_heads=4, hidden_dim=48, max_position_embeddings=LONGEST
    ),
    # A token sees its neighbours alone in two of its layers.
    "modernbert": ModernBertConfig(**_SIZES, local_attention=8, pad_token_id=0, global_attn_every_n_layers=3),
    "mpnet": MPNetConfig(**_SIZES),
    "roberta": RobertaConfig(**_SIZES),
}


def encoder(name: str = "bert", dtype: torch.dtype = torch.float32) -> BaseModel:
    return base_of(random_model(CONFIGS[name]), name, dtype)


def prompts(*lengths: int) -> list[PackedRow]:
    """Rows of random prompts; the first tokens of the vocabulary are special."""
    generator = torch.Generator().manual_seed(0)
    tokens = (tuple(torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()) for length in lengths)
    return [PackedRow(ids, (), "none", readout="linear", outputs=(0, 1)) for ids in tokens]


def plain_means(model: PreTrainedModel, row: PackedRow) -> torch.Tensor:
    """Mean states of a prompt at the second depth and at the last, from the library's own pass over it alone.

    They have unit length at each depth.
    """
    found = model(input_ids=torch.tensor([row.prompt]), output_hidden_states=True)
    means = torch.stack([found.hidden_states[1][0].mean(0), found.last_hidden_state[0].mean(0)])
    return normalize(means, dim=-1).flatten()


HEAD = HeadConfig(depths=(1, N_LAYERS), n_states=64, n_directions=4, n_grams=8)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("bert", ("query", "value")),
        ("distilbert", ("q_lin", "v_lin")),
        ("mpnet", ("q", "v")),
        ("modernbert", ("Wqkv",)),
    ],
)
def test_queries_and_values_of_an_encoder_have_names_of_their_own(name: str, targets: tuple[str, ...]) -> None:
    assert default_targets(encoder(name).model) == targets


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_is_read_in_a_batch_as_alone(name: str) -> None:
    base = check_packing(encoder(name))
    assert base.is_encoder
    rows = prompts(5, 23, 12)
    expected = torch.stack([plain_means(base.model, row) for row in rows])
    torch.testing.assert_close(read_rows(base.model, rows, HEAD, NO_LORA).states, expected, rtol=1e-4, atol=1e-5)


def test_a_lora_is_read_as_if_it_were_merged() -> None:
    base = check_packing(encoder())
    modules = select_modules(base.model, default_targets(base.model), range(N_LAYERS))
    [row] = prompts(9)
    before = plain_means(base.model, row)
    inject(base.model, modules)
    draws = random_draws(modules, 1)
    with use_draws(draws):
        expected = plain_means(base.model, row)
    assert (expected - before).abs().max() > 0.01
    found = read_rows(base.model, [row, *prompts(20, 3)], HEAD, draws).states[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_no_beginning_is_shared_because_a_token_sees_what_follows() -> None:
    base = check_packing(encoder())
    [row] = prompts(60)
    assert not runs_in_parts(base.model)
    assert n_shared(base.model, [row, row]) == 0


def test_a_language_model_is_no_encoder() -> None:
    assert not tiny_base().is_encoder


def test_an_encoder_that_reads_padding_is_refused() -> None:
    config = FNetConfig(
        **{k: v for k, v in _SIZES.items() if k != "num_attention_heads"}, use_tpu_fourier_optimizations=False
    )
    with pytest.raises(BaseModelError, match="a longer prompt in the batch changes the states"):
        check_packing(base_of(random_model(config), "fnet"))


def test_an_encoder_whose_last_token_alone_sees_the_whole_text_is_refused() -> None:
    """As MRA without its kernel, whose attention is zero."""
    base = encoder()
    for layer in range(N_LAYERS):
        values = base.model.get_submodule(f"encoder.layer.{layer}.attention.self.value")
        values.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    with pytest.raises(BaseModelError, match="a token does not see those behind it"):
        check_packing(base)


def test_an_encoder_that_pads_within_itself_is_refused() -> None:
    """Longformer pads to its window: the states of its layers are wider than the prompt."""
    base = base_of(random_model(LongformerConfig(**_SIZES, attention_window=[8] * N_LAYERS)), "longformer")
    with pytest.raises(BaseModelError, match="fails on a batch of prompts in float32 .IndexError"):
        check_packing(base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_is_told_from_rounding_in_every_dtype(dtype: torch.dtype) -> None:
    """YOSO reads the padding, which moves its states less than other such encoders'."""
    check_packing(encoder(dtype=dtype))
    with pytest.raises(BaseModelError, match="a longer prompt in the batch changes the states by"):
        check_packing(base_of(random_model(YosoConfig(**_SIZES)), "yoso", dtype))


def spoilt(change: Callable[[torch.Tensor], torch.Tensor]) -> BaseModel:
    """An encoder whose last states are changed in every pass."""
    base = encoder()
    layers = base.model.get_submodule("encoder.layer")

    def after(module: Any, given: Any, output: Any) -> Any:
        return change(output[0] if isinstance(output, tuple) else output)

    layers[-1].register_forward_hook(after)  # type: ignore[index]
    return base


def test_an_encoder_without_finite_states_is_refused() -> None:
    with pytest.raises(BaseModelError, match="no finite numbers in float32, expected states: use another model"):
        check_packing(spoilt(lambda states: states / 0))


def test_an_encoder_that_answers_at_random_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(BaseModelError, match="random or depends on the batch"):
        check_packing(spoilt(lambda states: torch.randn(states.shape, generator=generator)))


def test_an_encoder_that_fails_is_refused() -> None:
    def fail(states: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such thing")

    with pytest.raises(BaseModelError, match="fails on a batch of prompts in float32 .ValueError: no such thing."):
        check_packing(spoilt(fail))


def test_a_prompt_of_roberta_ends_before_its_positions_do() -> None:
    """Its positions begin behind the index of the padding, 1, so that two of the table are never a token's."""
    base = check_packing(encoder("roberta"))
    assert base.max_length == LONGEST - 2
    assert max_length_of(base.model) == LONGEST - 2
    assert read_rows(base.model, prompts(LONGEST - 2), HEAD, NO_LORA).states.isfinite().all()
    with pytest.raises(RuntimeError, match="out of bounds"):
        read_rows(base.model, prompts(LONGEST - 1), HEAD, NO_LORA)
    assert max_length_of(encoder("bert").model) == LONGEST


LINEAR = PromptConfig(template="{prompt}", choices=("yes", "no"), readout="linear")


def packed(config: PromptConfig, *choices: str) -> PackedRow:
    return pack(tiny_tokenizer(closes=True), choices=choices, config=config, prompt="it", max_length=20, encoder=True)


def test_a_prompt_may_be_longer_than_the_window_of_its_layers() -> None:
    assert check_packing(encoder("modernbert")).max_length == LONGEST


def test_chats_are_refused_even_if_the_tokenizer_has_a_template() -> None:
    turns = [{"role": "user", "content": "it"}]
    with pytest.raises(PromptError, match="an encoder, which reads no chats; send a prompt instead") as caught:
        pack(tiny_tokenizer(), choices=("yes", "no"), config=LINEAR, messages=turns, max_length=99, encoder=True)
    assert caught.value.param == "messages"


def test_a_prompt_ends_as_the_tokenizer_ends_a_text() -> None:
    row = packed(LINEAR, "yes", "no")
    tokenizer = tiny_tokenizer(closes=True)
    assert tokenizer.convert_ids_to_tokens([*row.prompt]) == ["<s>", "i", "t", "<unk>"]
    causal = pack(tokenizer, choices=("yes", "no"), config=LINEAR, prompt="it", max_length=20)
    assert causal.prompt == row.prompt[:-1]


@pytest.mark.parametrize(
    ("config", "choices"),
    [(LINEAR, ("yes", "maybe")), (PromptConfig(template="{prompt}"), ("yes", "no"))],
    ids=["other choices", "no head"],
)
def test_choices_that_a_language_model_would_score_are_refused(config: PromptConfig, choices: tuple[str, ...]) -> None:
    with pytest.raises(PromptError, match="an encoder, which scores no texts") as caught:
        packed(config, *choices)
    assert caught.value.param == "choices"


def test_choices_of_a_linear_head_are_its_own_if_they_look_like_them() -> None:
    cafe = replace(LINEAR, choices=("caf\u00e9", "no"))
    row = packed(cafe, "no\u200b", "cafe\u0301")
    assert (row.readout, row.outputs, row.choices) == ("linear", (1, 0), ("no\u200b", "cafe\u0301"))
    with pytest.raises(PromptError, match="an encoder, which scores no texts"):
        packed(cafe, "caf\u00e9", "cafe\u0301")


def test_depth_of_an_encoder_is_the_number_of_its_layers() -> None:
    assert n_layers_of(encoder("distilbert").model) == N_LAYERS
