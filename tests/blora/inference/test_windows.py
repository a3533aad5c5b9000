"""Rows longer than a model's sliding window, against plain forward passes of each choice alone."""

import contextlib
import copy
import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
)
from transformers.masking_utils import create_chunked_causal_mask, create_sliding_window_causal_mask
from transformers.models.mistral import modeling_mistral

from benchmarks.processors.noise import noisy_processor
from blora.adapter.opening import open_base
from blora.base_model import BaseModel
from blora.base_model.loading import max_length_of
from blora.config import HeadConfig, PromptConfig
from blora.errors import PromptTooLongError
from blora.inference.architecture import check_packing
from blora.inference.batches import collate
from blora.inference.branches import common_prefix, score_all
from blora.inference.fork import why_whole
from blora.inference.interruptible import make_interruptible
from blora.inference.packing import PackedRow, pack
from blora.inference.prefix import MIN_PREFIX
from blora.inference.reading import read_prefix, read_rows
from blora.inference.scoring import inputs_of
from blora.posterior.draws import NO_LORA, Draws
from blora.posterior.inject import decoder_layers, inject, select_modules
from tests.scenarios import (
    VOCAB_SIZE,
    base_of,
    choices_alone,
    merged,
    random_draws,
    random_model,
    random_rows,
    score,
    tiny_base,
    tiny_tokenizer,
)

WINDOW = 16
LONGEST = 192
HEAD = tuple(range(3, 3 + MIN_PREFIX + 8))
TOLERANCE = {"rtol": 0, "atol": 5e-5}

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
}
SOME: dict[str, Any] = {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

# In some layers, then in all.
WINDOWED: dict[str, PreTrainedConfig] = {
    "gemma2": Gemma2Config(**SIZES, **SOME),
    "gemma3_text": Gemma3TextConfig(**SIZES, **SOME),
    "gpt_oss": GptOssConfig(**SIZES, **SOME, num_local_experts=4, num_experts_per_tok=2),
    "mistral": MistralConfig(**SIZES),
    "phi3": Phi3Config(**SIZES),
}


def windowed(architecture: str, dtype: torch.dtype = torch.float32) -> BaseModel:
    """A tiny model with a window, as it is before the check."""
    model = random_model(copy.deepcopy(WINDOWED[architecture]))
    return replace(base_of(model, architecture, dtype), max_length=max_length_of(model))


@pytest.fixture(params=WINDOWED)
def base(request: pytest.FixtureRequest) -> BaseModel:
    """A model after the check, in which rows are as long as its positions allow."""
    return check_packing(windowed(request.param))


def rows_behind(head: tuple[int, ...]) -> list[PackedRow]:
    """Rows of 6 to 86 tokens behind the same ones."""
    rows = [replace(row, text=f"row {b}") for b, row in enumerate(random_rows(5))]
    return [replace(row, prompt=head + (5 * b) * row.prompt[:4] + row.prompt) for b, row in enumerate(rows)]


def draws_of(base: BaseModel, *layers: int) -> tuple[dict[str, tuple[int, int]], Draws]:
    names = ["qkv_proj"] if base.model.config.model_type == "phi3" else ["q_proj", "v_proj"]
    modules = select_modules(base.model, names, layers)
    return modules, random_draws(modules, 3, scaling=0.7)


def close(found: Tensor, expected: list[Tensor]) -> None:
    """Check log-probabilities (B, C) of rows with fewer choices."""
    for row, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(alone)], alone, **TOLERANCE)


# Numbers


def test_choices_behind_a_prompt_longer_than_the_window_score_as_alone(base: BaseModel) -> None:
    rows = rows_behind(())
    assert min(row.n_tokens for row in rows) < WINDOW < 4 * WINDOW < max(row.n_tokens for row in rows)
    close(score(base.model, collate(rows), None)[0], [choices_alone(base.model, row) for row in rows])


@pytest.mark.parametrize("layers", [(0, 1, 2), (1, 2), (2,)])
@pytest.mark.parametrize("head", [(), HEAD], ids=["whole", "behind a cached prefix"])
def test_draws_score_as_if_merged(base: BaseModel, head: tuple[int, ...], layers: tuple[int, ...]) -> None:
    modules, draws = draws_of(base, *layers)
    rows, plain = rows_behind(head), copy.deepcopy(base.model)
    inject(base.model, modules)
    assert (common_prefix(base.model, rows, draws, 400) is not None) == bool(head)
    found = score_all(base.model, rows, draws, max_batch_tokens=400)
    for s in range(3):
        model = merged(plain, draws, s)
        close(found[s], [choices_alone(model, row) for row in rows])
    assert (found[0, :, 0] - found[1, :, 0]).abs().max() > 0.1


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_a_head_reads_the_states_of_plain_passes(base: BaseModel, readout: str) -> None:
    depths = (1, 2)
    config = HeadConfig(depths=depths, n_states=64, n_directions=8)
    rows = [replace(row, readout=readout) for row in rows_behind(HEAD)]
    if readout == "linear":
        rows = [replace(row, continuations=(), outputs=(0, 1)) for row in rows]
    whole = read_rows(base.model, rows, config, NO_LORA)
    prefix = read_prefix(base.model, rows[0], len(HEAD), config, NO_LORA)
    after = read_rows(base.model, rows, config, NO_LORA, prefix)
    torch.testing.assert_close((after.states, after.counts), (whole.states, whole.counts), rtol=1e-3, atol=1e-4)
    for b, row in enumerate(rows):
        expected = states_alone(base, row.prompt, depths).mean(0)
        torch.testing.assert_close(whole.prompt[b], expected, rtol=1e-3, atol=1e-4)
        for c, tokens in enumerate(row.continuations):
            if len(tokens) > 1:
                own = states_alone(base, (*row.prompt, *tokens[:-1]), depths)[row.prompt_tokens :].mean(0)
                torch.testing.assert_close(whole.states[b, c], own, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def states_alone(base: BaseModel, ids: tuple[int, ...], depths: tuple[int, ...]) -> Tensor:
    """(T, F) states that enter layers in a plain forward pass."""
    seen: list[Tensor] = []
    layers = decoder_layers(base.model)[1]
    hooks = [layers[depth].register_forward_pre_hook(lambda _, args: seen.append(args[0][0])) for depth in depths]
    base.model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.cat(seen, -1)


def test_attention_in_pieces_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    base, rows = check_packing(windowed("mistral")), rows_behind(HEAD)
    expected = score(base.model, collate(rows), None)
    make_interruptible(base.model)
    monkeypatch.setattr("blora.inference.interruptible.PIECE_SCORES", 2**14)
    torch.testing.assert_close(score(base.model, collate(rows), None), expected, **TOLERANCE)


# Masks


def test_rows_within_the_window_get_the_mask_of_a_model_without_one(base: BaseModel) -> None:
    short, long = ([row for row in rows_behind(()) if (row.n_tokens <= WINDOW) == within] for within in (True, False))
    plain = inputs_of(tiny_base().model, collate(short))["attention_mask"]
    assert torch.equal(inputs_of(base.model, collate(short))["attention_mask"], plain)
    masks = inputs_of(base.model, collate(long))["attention_mask"]
    full = inputs_of(tiny_base().model, collate(long))["attention_mask"]
    if base.model.config.model_type in ("mistral", "phi3"):
        assert (masks == 0).sum() < (full == 0).sum()
    else:
        assert torch.equal(masks["full_attention"], full)
        assert (masks["sliding_attention"] == 0).sum() < (full == 0).sum()


# The check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", WINDOWED)
def test_a_window_that_passes_limits_rows_no_more(architecture: str, dtype: torch.dtype) -> None:
    found = windowed(architecture, dtype)
    assert found.max_length == WINDOW
    with contextlib.nullcontext() if architecture == "gpt_oss" else noisy_processor(0):  # noise moves its routes
        assert check_packing(found).max_length == LONGEST
    assert why_whole(found.model) is None
    assert found.model.config.sliding_window == WINDOW


def other(change: Callable[[PreTrainedConfig], None], make: Any = create_sliding_window_causal_mask) -> Any:
    """A maker of masks by other settings."""

    @functools.wraps(make)
    def made(config: PreTrainedConfig, *args: Any, **kwargs: Any) -> Any:
        config = copy.copy(config)
        change(config)
        return make(config, *args, **kwargs)

    return made


def chunks(config: Any) -> None:
    config.attention_chunk_size = config.sliding_window


def wider(config: Any) -> None:
    config.sliding_window += 1


def narrower(config: Any) -> None:
    config.sliding_window -= 1


def fixed(config: Any) -> None:
    config.sliding_window = WINDOW


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [chunks, wider, narrower, fixed])
def test_rows_stay_within_a_window_that_the_model_counts_otherwise(
    change: Callable[[Any], None],
    dtype: torch.dtype,
    seed: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = other(change, create_chunked_causal_mask) if change is chunks else other(change)
    monkeypatch.setattr(modeling_mistral, "create_sliding_window_causal_mask", made)
    found = windowed("mistral", dtype)
    with noisy_processor(seed) if seed is not None else contextlib.nullcontext(), caplog.at_level(logging.WARNING):
        base = check_packing(found)
    assert base.max_length == WINDOW
    assert (
        "tiny/mistral reads no more tokens than its sliding window has, 16, because longer rows fail: " in caplog.text
    )
    assert isinstance(inputs_of(base.model, collate(rows_behind(HEAD)))["attention_mask"], Tensor)


@pytest.mark.parametrize("types", [None, ["sliding_attention"] * 3], ids=["every layer", "by type"])
def test_a_prompt_beyond_a_window_that_fails_is_refused(types: list[str] | None) -> None:
    model = random_model(LlamaConfig(**SIZES, layer_types=types))  # its layers do not slide, nor take masks by type
    base = check_packing(replace(base_of(model, "llama"), max_length=max_length_of(model)))
    config = PromptConfig(template="{prompt}")
    packed = functools.partial(pack, base.tokenizer, choices=("a", "b"), config=config, max_length=base.max_length)
    with pytest.raises(PromptTooLongError, match="expected at most 16; shorten the prompt"):
        packed(prompt="x" * 16)
    row = packed(prompt="x" * 8)
    close(score(base.model, collate([row]), None)[0], [choices_alone(base.model, row)])


def test_an_opened_model_reads_prompts_beyond_its_window(tmp_path: Path) -> None:
    model = windowed("mistral").model
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    base = open_base(str(tmp_path), device="cpu", dtype="float32")
    row = pack(base.tokenizer, prompt="x" * 64, choices=("a", "b"), config=PromptConfig(), max_length=base.max_length)
    close(score(base.model, collate([row]), None)[0], [choices_alone(model, row)])


def test_a_wide_window_is_tested_in_short_rows() -> None:
    model = random_model(MistralConfig(**SIZES | {"sliding_window": LONGEST - 1}))
    read: list[int] = []
    decoder_layers(model)[1][0].register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1]))
    assert check_packing(replace(base_of(model, "mistral"), max_length=LONGEST - 1)).max_length == LONGEST
    assert max(read) < LONGEST // 4


def test_a_window_as_wide_as_the_positions_is_not_tested() -> None:
    base = base_of(random_model(MistralConfig(**SIZES | {"sliding_window": LONGEST})), "mistral")
    assert check_packing(base) is base
