"""Models without block masks, recurrent ones above all: each choice in a sequence of its own, as if it were alone."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    Lfm2Config,
    LlamaForCausalLM,
    Mamba2Config,
    MambaConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
)
from transformers.modeling_outputs import CausalLMOutput

from blora.base_model import BaseModel
from blora.config import HeadConfig
from blora.errors import BaseModelError
from blora.inference import unpacked
from blora.inference.architecture import check_packing
from blora.inference.batches import collate
from blora.inference.branches import Branches, n_shared, score_all
from blora.inference.fork import hidden_at, logits_at, states_at, why_whole
from blora.inference.packing import PackedRow, States
from blora.inference.reading import read_rows
from blora.inference.scoring import inputs_of, score_rows
from blora.inference.unpacked import Way, read_states, unpack, way_of
from blora.posterior.draws import NO_LORA, Draws, use_draws
from blora.posterior.inject import decoder_layers, inject, linear_modules
from tests.scenarios import (
    DECODERS,
    VOCAB_SIZE,
    base_of,
    choices_alone,
    merged,
    random_draws,
    random_model,
    random_rows,
    tiny_base,
    tiny_model,
)

_SMALL = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 256}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3_5": Qwen3_5TextConfig(
        **_SMALL,
        **_HEADS,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    ),
    "lfm2": Lfm2Config(**_SMALL, **_HEADS, layer_types=["conv", "full_attention"]),
    "mamba2": Mamba2Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1
    ),
    "mamba": MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=8),
    "bloom": BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4),
}
WAYS = dict.fromkeys(CONFIGS, "continued") | {"mamba": "repeated"}


def base_model(kind: str, dtype: torch.dtype = torch.float32) -> BaseModel:
    return base_of(random_model(CONFIGS[kind]), kind, dtype)


@pytest.fixture(params=[*((kind, WAYS[kind]) for kind in CONFIGS), ("qwen3_5", "repeated"), ("lfm2", "repeated")])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    kind, way = request.param
    model = check_packing(base_model(kind)).model
    unpack(model, way)
    return model


# The check at the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_without_block_masks_reads_choices_one_by_one_and_says_so(
    kind: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    if (kind, dtype) == ("mamba", torch.bfloat16):
        with pytest.raises(BaseModelError, match=r"fails on a batch of choices in bfloat16 .*: use --dtype float32"):
            check_packing(base_model(kind, dtype))
        return
    base = base_model(kind, dtype)
    with caplog.at_level(logging.WARNING, "blora"):
        checked = check_packing(base)
    assert way_of(checked.model) == WAYS[kind]
    assert why_whole(checked.model) == "it takes no block masks"
    [said] = [record.getMessage() for record in caplog.records if record.name.startswith("blora")]
    how = "" if WAYS[kind] == "continued" else ", each behind a copy of the prompt"
    assert said.startswith(
        f"tiny/{kind} takes no block masks, so choices are read one by one{how}, and every layer runs"
    )


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_model_with_block_masks_packs_whatever_was_set_before(architecture: str) -> None:
    base = tiny_base(architecture)
    unpack(base.model, "repeated")
    assert way_of(check_packing(base).model) is None


def test_a_window_is_no_limit_where_choices_are_read_one_by_one() -> None:
    base = base_model("qwen3_5")
    base.model.config.sliding_window = 16
    assert check_packing(base).max_length == 256


def test_the_length_of_mpt_is_its_own_setting() -> None:
    config = MptConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)
    base = check_packing(base_of(random_model(config), "mpt"))
    assert (way_of(base.model), base.max_length) == ("continued", 64)
    assert base.model(torch.zeros(1, base.max_length, dtype=torch.long)).logits.isfinite().all()


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    base = base_model("lfm2")
    for module in base.model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    with pytest.raises(BaseModelError, match="in which .* changes the logits by .* a token depends on more"):
        check_packing(base)


def test_a_model_that_takes_no_masks_and_sees_later_tokens_is_refused_for_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = base_model("bloom")  # fails on the dimensions of a block mask
    first = base.model.transformer.h[0].mlp
    forward = first.forward
    monkeypatch.setattr(first, "forward", lambda x, residual: forward(x + x.mean(1, keepdim=True), residual))
    with pytest.raises(BaseModelError, match="in which .* changes the logits by .* a token depends on more"):
        check_packing(base)


def test_too_little_memory_is_no_reason_to_read_choices_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    layer = base.model.model.layers[1].mlp
    forward = layer.forward

    def fits_alone(x: torch.Tensor) -> torch.Tensor:
        if x.shape[:2] == (2, 24):  # the packed rows of the check
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x)

    monkeypatch.setattr(layer, "forward", fits_alone)
    with pytest.raises(BaseModelError, match="OutOfMemoryError: CUDA out of memory"):
        check_packing(base)


def test_too_little_memory_is_no_reason_to_copy_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(unpacked, "_continued", full)
    base = base_model("lfm2")
    with pytest.raises(BaseModelError, match="OutOfMemoryError: CUDA out of memory"):
        check_packing(base)
    assert way_of(base.model) is None


def test_a_model_that_fails_on_each_choice_too_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_model("mamba2")

    def explode(*args: object, **kwargs: object) -> None:
        raise ValueError("boom")

    monkeypatch.setattr(base.model.backbone.layers[1].mixer, "forward", explode)
    with pytest.raises(BaseModelError, match=r"tiny/mamba2, which fails .*ValueError: boom"):
        check_packing(base)


# Scores and features


@torch.no_grad()
def test_scores_are_those_of_each_choice_alone(model: PreTrainedModel) -> None:
    rows = random_rows(6, normalization="choice")
    found = score_rows(model, collate(rows), None)
    for row, log_probs in zip(rows, found, strict=True):
        torch.testing.assert_close(log_probs[: row.n_choices], choices_alone(model, row), rtol=0, atol=1e-4)
        assert log_probs[row.n_choices :].isneginf().all()


@torch.no_grad()
def test_the_order_of_choices_does_not_matter(model: PreTrainedModel) -> None:
    rows = random_rows(4)
    turned = [replace(row, continuations=row.continuations[::-1]) for row in rows]
    found, other = (score_rows(model, collate(these), None) for these in (rows, turned))
    for row, one, two in zip(rows, found, other, strict=True):
        torch.testing.assert_close(one[: row.n_choices], two[: row.n_choices].flip(0), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_a_head_reads_the_mean_states_of_plain_passes(model: PreTrainedModel, readout: str) -> None:
    rows = random_rows(5)
    if readout == "linear":
        rows = [replace(row, continuations=(), outputs=(0, 1), readout="linear") for row in rows]
    else:
        rows = [replace(row, readout="pointer") for row in rows]
    config = HeadConfig(depths=(1, 2), n_states=64, n_directions=5)
    found = read_rows(model, rows, config, NO_LORA)
    assert found.prompt is not None
    for b, row in enumerate(rows):
        torch.testing.assert_close(found.prompt[b], plain_states(model, row.prompt).mean(0), rtol=1e-4, atol=1e-4)
        for c, tokens in enumerate(row.continuations):
            own = plain_states(model, (*row.prompt, *tokens[:-1]))[row.prompt_tokens :]
            expected = own.mean(0) if len(own) else torch.zeros(64)
            torch.testing.assert_close(found.states[b, c], expected, rtol=1e-4, atol=1e-4)


def plain_states(model: PreTrainedModel, tokens: tuple[int, ...]) -> torch.Tensor:
    """States (T, 64) that enter the second layer and the output head, from a forward pass of transformers."""
    seen: list[torch.Tensor] = []
    read = (decoder_layers(model)[1][1], model.get_output_embeddings())
    handles = [module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0])) for module in read]
    try:
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(seen, -1)


@torch.no_grad()
def test_rows_under_draws_of_several_adapters_get_what_merged_weights_give(model: PreTrainedModel) -> None:
    modules = {name: shape for name, shape in linear_modules(model).items() if "dense" not in name}
    draws = [random_draws(modules, 2, seed=seed, scaling=0.3) for seed in (1, 2)]
    rows, owner = random_rows(4), [1, 0, 0, 1]
    expected = [
        torch.stack([choices_alone(merged(model, draws[u], s), row) for s in range(2)])
        for row, u in zip(rows, owner, strict=True)
    ]
    inject(model, modules)
    found = Branches(model, rows, draws, owner).score(range(4), 0, 2)
    bounded = Branches(model, rows, draws, owner).score([3, 0], 0, 2, max_batch_tokens=40)
    for b, row in enumerate(rows):
        torch.testing.assert_close(found[:, b, : row.n_choices], expected[b], rtol=0, atol=2e-4)
    for place, b in enumerate((3, 0)):
        torch.testing.assert_close(bounded[:, place, : rows[b].n_choices], expected[b], rtol=0, atol=2e-4)
    alone = score_all(model, rows, draws[0], max_batch_tokens=50)
    for b in (1, 2):
        torch.testing.assert_close(alone[:, b, : rows[b].n_choices], expected[b], rtol=0, atol=2e-4)


def test_training_has_the_gradients_of_each_choice_alone() -> None:
    model = check_packing(base_model("qwen3_5")).model
    modules = {name: shape for name, shape in linear_modules(model).items() if name.endswith(("in_proj_qkv", "q_proj"))}
    draws, [row] = random_draws(modules, 1, scaling=0.3), random_rows(1)
    for factors in draws.factors.values():
        factors.A.requires_grad_()
    inject(model, modules)
    factors = [one.A for one in draws.factors.values()]
    together = torch.autograd.grad(score_rows(model, collate([row]), draws)[0, 0], factors)
    totals = []
    for tokens in row.continuations:
        alone = replace(row, continuations=(tokens, tokens[:1]))
        batch = collate([alone])
        totals.append(_log_prob(model, batch.input_ids[:1], row.prompt_tokens, tokens, draws))
    apart = torch.autograd.grad(torch.stack(totals).log_softmax(0)[0], factors)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def _log_prob(
    model: PreTrainedModel, ids: torch.Tensor, n_prompt: int, tokens: tuple[int, ...], draws: Draws
) -> torch.Tensor:
    with use_draws(draws):
        logits = model(input_ids=ids, use_cache=False).logits[0, n_prompt - 1 :].log_softmax(-1)
    return logits[: len(tokens)].gather(1, torch.tensor(tokens)[:, None]).sum()


def test_nothing_is_shared_among_rows_that_begin_alike() -> None:
    base = check_packing(base_model("lfm2"))
    rows = [PackedRow((*range(60), k), ((1, 2), (3,)), "none") for k in range(3)]
    assert n_shared(base.model, rows) == 0


@torch.no_grad()
@pytest.mark.parametrize("way", ["continued", "repeated"])
@pytest.mark.parametrize("most", [1, 2**13, 2**30])
def test_a_model_that_packs_gives_the_same_one_by_one(way: Way, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "MOST_REMEMBERED", most)
    model, batch = tiny_model("llama"), collate([*random_rows(5), PackedRow((1, 2), ((3,), (4,)), "none")])
    packed = read_states(model, [1, 2], **inputs_of(model, batch))
    unpack(model, way)
    found = read_states(model, [1, 2], **inputs_of(model, batch))
    read = batch.segment >= 0
    for depth in (1, 2):
        torch.testing.assert_close(found[depth][read], packed[depth][read], rtol=1e-4, atol=1e-5)
        assert not found[depth][~read].any()


@torch.no_grad()
def test_a_prompt_is_read_once_and_prompts_of_one_length_together() -> None:
    model = check_packing(base_model("qwen3_5")).model
    read: list[tuple[int, ...]] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape[:2])))
    long = [PackedRow((k, *range(20)), ((1, 2, 3), (4, 5), (6,)), "none") for k in range(3)]
    score_rows(model, collate([*long, PackedRow((1, 2), ((3, 4, 5), (6, 7)), "none")]), None)
    assert sorted(read) == [(1, 2), (2, 2), (3, 21), (6, 2)]  # sequences x tokens


@torch.no_grad()
def test_passes_are_no_larger_than_the_packed_row_where_a_choice_is_long() -> None:
    model = check_packing(base_model("qwen3_5")).model
    read: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: read.append(args[0].shape[:2].numel()))
    long = PackedRow((1, 2), (*[(3, 4)] * 20, (*range(40),), *[(5, 6, 7)] * 20), "none")
    other = PackedRow((1, 2, 3), (*[(3, 4)] * 20,), "none")
    batch = collate([long, other])
    score_rows(model, batch, None)
    assert max(read) <= batch.input_ids.numel()
    assert sum(read) < 1.5 * (long.n_tokens + other.n_tokens)  # nor are short choices padded to the long one


@torch.no_grad()
def test_copies_of_recurrent_states_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = check_packing(base_model("qwen3_5")).model
    read: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: read.append(len(args[0])))
    monkeypatch.setattr(unpacked, "MOST_REMEMBERED", 2**14)
    score_rows(model, collate([PackedRow((1, 2), ((3, 4),) * 40, "none")]), None)
    state = 4 * 8 * 8 * 4  # bytes of one sequence's: heads, keys, values, float32
    assert 1 < max(read) <= 2**14 // state


@torch.no_grad()
def test_states_that_enter_the_head_are_not_scaled_again() -> None:
    class Scaled(LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, **more: Any) -> CausalLMOutput:
            states = self.model(input_ids=input_ids, **more).last_hidden_state / 2
            return CausalLMOutput(logits=self.lm_head(states))

    model, ids, at = tiny_model("llama"), torch.tensor([[1, 2, 3]]), (torch.tensor([0]), torch.tensor([2]))
    model.__class__ = Scaled
    expected = model(ids).logits[at]
    for depth, states in states_at(model, [1, 2], input_ids=ids).items():
        known = States(depth, states)
        torch.testing.assert_close(model.lm_head(hidden_at(model, known, *at, input_ids=ids)), expected)
        torch.testing.assert_close(logits_at(model, known, *at, input_ids=ids), expected)


def test_training_reads_choices_in_plain_passes() -> None:
    model = check_packing(base_model("qwen3_5")).model
    read: list[tuple[int, ...]] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape[:2])))
    score_rows(model, collate([PackedRow((1, 2), ((3, 4, 5), (6, 7), (8,)), "none")]), None)
    assert read == [(1, 4), (1, 3)]
