"""Models without block masks, recurrent ones above all: each choice behind a copy of the prompt, as if it were alone."""

import logging
from dataclasses import replace

import pytest
import torch
from transformers import (
    BloomConfig,
    Lfm2Config,
    Mamba2Config,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
)

from blora.base_model import BaseModel
from blora.config import HeadConfig
from blora.errors import BaseModelError
from blora.inference.architecture import check_packing
from blora.inference.batch import by_length, collate, padded_tokens, spread_states
from blora.inference.branches import Branches, n_shared, score_all
from blora.inference.fork import why_whole
from blora.inference.packing import PackedRow, States
from blora.inference.reading import read_rows
from blora.inference.scoring import inputs_of, score_rows, states_of
from blora.posterior.draws import Draws, use_draws
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
    "bloom": BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4),
}
NO_LORA = Draws({}, 1.0, 1)


def separate(rows: list[PackedRow]) -> list[PackedRow]:
    return [replace(row, separate=True) for row in rows]


def base_model(kind: str, dtype: torch.dtype = torch.float32) -> BaseModel:
    return base_of(random_model(CONFIGS[kind]), kind, dtype)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return check_packing(base_model(request.param)).model


# The check at the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_without_block_masks_reads_choices_separately_and_says_so(
    kind: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    base = base_model(kind, dtype)
    with caplog.at_level(logging.WARNING, "blora"):
        checked = check_packing(base)
    assert (checked.separate, base.separate) == (True, False)
    assert why_whole(checked.model) == "it takes no block masks, so each choice is read behind a copy of the prompt"
    [said] = [record.getMessage() for record in caplog.records if record.name.startswith("blora")]
    assert said.startswith(f"tiny/{kind} takes no block masks, so each choice of several tokens is read behind a copy")


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_model_with_block_masks_packs(architecture: str) -> None:
    assert not check_packing(tiny_base(architecture)).separate


def test_a_window_is_no_limit_where_choices_are_read_separately() -> None:
    base = base_model("qwen3_5")
    base.model.config.sliding_window = 16
    assert check_packing(base).max_length == 256


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    base = base_model("lfm2")
    for module in base.model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    with pytest.raises(BaseModelError, match="in which exchanging tokens hidden from a choice changes the logits"):
        check_packing(base)


def test_a_model_that_fails_on_separate_choices_too_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_model("mamba2")

    def explode(*args: object, **kwargs: object) -> None:
        raise ValueError("boom")

    monkeypatch.setattr(base.model.backbone.layers[1].mixer, "forward", explode)
    with pytest.raises(BaseModelError, match=r"tiny/mamba2, which fails .*ValueError: boom"):
        check_packing(base)


# Rows and batches


def test_choices_of_one_token_take_no_sequence() -> None:
    row = PackedRow((1, 2, 3), ((4,), (5, 6), (7,), (8, 9, 10)), "none", separate=True)
    assert row.sequences == ((0, 2, 1), (3,))
    assert (row.n_sequences, row.choice_columns, row.n_tokens) == (2, 2, 2 * 3 + 3)
    letters = PackedRow((1, 2, 3), ((4,), (5,)), "none", separate=True)
    assert (letters.sequences, letters.n_tokens, letters.choice_columns) == (((0, 1),), 3, 0)
    linear = PackedRow((1, 2, 3), (), "none", readout="linear", outputs=(0, 1), separate=True)
    assert (linear.sequences, linear.n_sequences, linear.n_tokens) == (((),), 1, 3)


def test_sequences_are_padded_to_the_right_and_counted_with_their_padding() -> None:
    rows = separate(random_rows(9))
    batch = collate(rows, pad_id=3)
    assert len(batch.input_ids) == sum(row.n_sequences for row in rows) == len(batch.owner)
    assert batch.padded_tokens == batch.input_ids.numel() == padded_tokens(rows)
    r = 0
    for row in rows:
        for choices in row.sequences:
            read = [token for c in choices for token in row.continuations[c][:-1]]
            expected = [*row.prompt, *read]
            assert batch.input_ids[r].tolist() == expected + [3] * (batch.input_ids.shape[1] - len(expected))
            r += 1
    assert all(padded_tokens([rows[i] for i in picked]) <= 60 for picked in by_length(rows, 60) if len(picked) > 1)


def test_states_are_spread_over_rows_and_collected_again() -> None:
    rows = separate(random_rows(5))
    batch = collate(rows)
    values = torch.randn(*batch.input_ids.shape, 4)
    spread = spread_states(rows, States(1, values))
    assert [len(row.states.values) for row in spread if row.states is not None] == [row.n_tokens for row in rows]
    again = collate(spread).states
    assert again is not None
    widths = [
        len(row.prompt) + sum(len(row.continuations[c]) - 1 for c in part) for row in rows for part in row.sequences
    ]
    for r, width in enumerate(widths):
        assert torch.equal(again.values[r, :width], values[r, :width])
        assert not again.values[r, width:].any()


# Scores and features


@torch.no_grad()
def test_scores_are_those_of_each_choice_alone(model: PreTrainedModel) -> None:
    rows = separate(random_rows(6, normalization="choice"))
    found = score_rows(model, collate(rows), None)
    for row, log_probs in zip(rows, found, strict=True):
        torch.testing.assert_close(log_probs[: row.n_choices], choices_alone(model, row), rtol=0, atol=1e-4)
        assert log_probs[row.n_choices :].isneginf().all()


@torch.no_grad()
def test_the_order_of_choices_does_not_matter(model: PreTrainedModel) -> None:
    rows = separate(random_rows(4))
    turned = [replace(row, continuations=row.continuations[::-1]) for row in rows]
    found, other = (score_rows(model, collate(these), None) for these in (rows, turned))
    for row, one, two in zip(rows, found, other, strict=True):
        torch.testing.assert_close(one[: row.n_choices], two[: row.n_choices].flip(0), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_a_head_reads_the_mean_states_of_plain_passes(model: PreTrainedModel, readout: str) -> None:
    rows = separate(random_rows(5))
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
    rows, owner = separate(random_rows(4)), [1, 0, 0, 1]
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
    model = base_model("qwen3_5").model
    modules = {name: shape for name, shape in linear_modules(model).items() if name.endswith(("in_proj_qkv", "q_proj"))}
    draws, [row] = random_draws(modules, 1, scaling=0.3), separate(random_rows(1))
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
    rows = separate([PackedRow((*range(60), k), ((1, 2), (3,)), "none") for k in range(3)])
    assert n_shared(base.model, rows) == 0


def test_a_model_that_packs_reads_separate_rows_as_packed_ones() -> None:
    model = random_model(
        OPTConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            word_embed_proj_dim=16,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    rows = random_rows(5)
    found = [score_rows(model, collate(these), None) for these in (rows, separate(rows))]
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
    states = [states_of(model, collate(these), 1) for these in (rows[:1], separate(rows[:1]))]
    n_prompt = rows[0].prompt_tokens
    torch.testing.assert_close(states[0].values[0, :n_prompt], states[1].values[0, :n_prompt], rtol=1e-4, atol=1e-4)
    assert set(inputs_of(model, collate(separate(rows)))) == {"input_ids"}
