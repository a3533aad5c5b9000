"""Packed rows against the same choices scored one at a time by an ordinary forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.base_model import BaseModel
from blora.config import NormalizationName, PosteriorConfig, PromptConfig
from blora.inference import scoring
from blora.inference.batches import collate
from blora.inference.branches import score_all
from blora.inference.packing import PackedRow, pack
from blora.inference.scoring import score_rows
from blora.posterior.draws import Draws, use_draws
from blora.posterior.inject import inject, select_modules
from blora.posterior.posterior import Posterior
from tests.scenarios import (
    ARCHITECTURES,
    DECODERS,
    choices_alone,
    injected,
    merged,
    random_draws,
    random_rows,
    score,
    tiny_base,
    tiny_model,
)


@torch.no_grad()
def packed(model: PreTrainedModel, rows: list[PackedRow], draws: Draws | None = None) -> Tensor:
    return score(model, collate(rows), draws)


def assert_same_choices(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """(C_max,) against (C,), and -inf where there is no choice."""
    torch.testing.assert_close(got[: len(expected)], expected, rtol=0, atol=tolerance)
    assert (got[len(expected) :] == -torch.inf).all()


@contextmanager
def recorded_batches(model: PreTrainedModel) -> Iterator[list[int]]:
    """The padded tokens of every forward pass in the block."""
    sizes: list[int] = []

    def record(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sizes.append(kwargs["input_ids"].numel())

    decoder = model.get_submodule(model.base_model_prefix)
    handle = decoder.register_forward_pre_hook(record, with_kwargs=True)
    yield sizes
    handle.remove()


# Against scoring each choice alone


@pytest.mark.parametrize("normalization", get_args(NormalizationName))
@pytest.mark.parametrize("architecture", DECODERS)
def test_packed_choices_score_as_each_alone(architecture: str, normalization: NormalizationName) -> None:
    model = tiny_model(architecture)
    rows = random_rows(10, normalization=normalization)
    got = packed(model, rows)
    assert got.shape == (1, 10, 4)
    assert {row.n_choices for row in rows} == {2, 3, 4}
    for b, row in enumerate(rows):
        assert_same_choices(got[0, b], choices_alone(model, row))


@pytest.mark.parametrize("architecture", DECODERS)
def test_packed_choices_under_draws_score_as_each_alone_in_merged_models(architecture: str) -> None:
    model, modules = injected(architecture)
    draws = random_draws(modules, 3, scaling=0.7)
    rows = random_rows(5, seed=1)
    got = packed(model, rows, draws)
    assert got.shape == (3, 5, 4)
    for s in range(3):
        plain = merged(tiny_model(architecture), draws, s)
        for b, row in enumerate(rows):
            assert_same_choices(got[s, b], choices_alone(plain, row), 1e-4)
    assert (got[0, :, 0] - got[1, :, 0]).abs().max() > 0.1


@pytest.mark.parametrize("messages", [False, True])
@pytest.mark.parametrize("by", ["text", "label"])
def test_questions_score_as_their_choices_alone(by: str, messages: bool) -> None:
    base = tiny_base()
    question = {"messages": [{"role": "user", "content": "What is up?"}]} if messages else {"prompt": "What is up?"}
    row = pack(
        base.tokenizer,
        choices=["the sky", "a bird of prey", "up"],
        config=PromptConfig(scoring=by, normalization="choice"),  # type: ignore[arg-type]
        max_length=base.max_length,
        **question,  # type: ignore[arg-type]
    )
    assert_same_choices(packed(base.model, [row])[0, 0], choices_alone(base.model, row))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probabilities_of_every_row_sum_to_one(architecture: str) -> None:
    totals = packed(tiny_model(architecture), random_rows(6)).exp().sum(-1)
    torch.testing.assert_close(totals, torch.ones_like(totals))


@pytest.mark.parametrize("architecture", DECODERS)
def test_neither_neighbours_nor_padding_matter(architecture: str) -> None:
    model = tiny_model(architecture)
    rows = random_rows(6)
    together = packed(model, rows)[0]
    with torch.no_grad():
        other_padding = score(model, collate(rows, pad_id=77), None)[0]
    torch.testing.assert_close(other_padding, together, rtol=0, atol=1e-6)
    for b, row in enumerate(rows):
        assert_same_choices(together[b], packed(model, [row])[0, 0], 1e-5)


def test_the_order_of_choices_does_not_matter() -> None:
    model = tiny_model()
    (row,) = random_rows(1, seed=4)
    turned = PackedRow(row.prompt, row.continuations[::-1], row.normalization)
    torch.testing.assert_close(packed(model, [turned])[0, 0].flip(0), packed(model, [row])[0, 0], rtol=0, atol=1e-5)


def test_the_vocabulary_is_normalised_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_model(), random_rows(5)
    expected = packed(model, rows)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(packed(model, rows), expected, rtol=0, atol=1e-6)


# Draws


def test_each_row_may_have_its_own_draw() -> None:
    model, modules = injected()
    draws = random_draws(modules, 4, scaling=0.7)
    rows = random_rows(4, seed=2)
    with torch.no_grad():
        got = score_rows(model, collate(rows), draws)
    for b, row in enumerate(rows):
        alone = packed(model, [row], draws.part(b, b + 1))[0, 0]
        assert_same_choices(got[b], alone, 1e-4)


def test_copies_of_a_batch_may_share_draws() -> None:
    model, modules = injected()
    draws = random_draws(modules, 2, scaling=0.7)
    rows = random_rows(3, seed=2)
    with torch.no_grad():
        got = score_rows(model, collate(rows * 4), draws).unflatten(0, (4, 3))
    expected = packed(model, rows, draws)
    for copy in range(4):
        torch.testing.assert_close(got[copy], expected[copy // 2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_batch_tokens", [None, 1, 100, 250, 10_000])
def test_draws_in_several_passes_are_the_draws_in_one(max_batch_tokens: int | None) -> None:
    model, modules = injected()
    draws = random_draws(modules, 5, scaling=0.7)
    batch = collate(random_rows(3, seed=5))
    with recorded_batches(model) as sizes, torch.no_grad():
        got = score(model, batch, draws, max_batch_tokens=max_batch_tokens)
    torch.testing.assert_close(got, packed(model, random_rows(3, seed=5), draws), rtol=0, atol=1e-4)
    per_draw = batch.input_ids.numel()
    assert sum(sizes) == 5 * per_draw
    if max_batch_tokens is not None:
        assert max(sizes) <= max(max_batch_tokens, per_draw)


def test_no_draws_score_the_base_model_even_inside_a_block_of_draws() -> None:
    model, modules = injected()
    rows = random_rows(2)
    with use_draws(random_draws(modules, 3)):
        got = packed(model, rows)
    torch.testing.assert_close(got, packed(tiny_model(), rows))


def test_gradients_reach_the_posterior_through_the_answers() -> None:
    model, modules = injected()
    posterior = Posterior(modules, PosteriorConfig(rank=2, inducing_rows=3, inducing_cols=3), seed=0)
    draws = posterior.sample(2, torch.Generator().manual_seed(0))
    log_probs = score_rows(model, collate(random_rows(3) * 2), draws)
    log_probs[:, 0].sum().backward()
    for parameter in posterior.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


# Many rows


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 100, 10_000])
def test_scoring_in_batches_of_any_size_is_scoring_at_once(max_batch_tokens: int) -> None:
    model, modules = injected()
    rows = random_rows(12, seed=3)
    for draws in (None, random_draws(modules, 2, scaling=0.7)):
        got = score_all(model, rows, draws, max_batch_tokens=max_batch_tokens)
        torch.testing.assert_close(got, packed(model, rows, draws), rtol=0, atol=1e-4)


def test_answers_come_in_the_order_of_the_questions() -> None:
    model = tiny_model()
    rows = random_rows(12, seed=3)
    forwards, backwards = (score_all(model, r, None, max_batch_tokens=50) for r in (rows, rows[::-1]))
    torch.testing.assert_close(forwards.flip(1), backwards, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_samples", [1, 3])
def test_no_forward_pass_exceeds_the_bound_of_padded_tokens_times_draws(n_samples: int) -> None:
    model, modules = injected()
    # Long prompts with short choices beside short prompts with long ones: the padded rectangle outgrows every row.
    long_prompt = PackedRow(tuple(range(1, 31)), ((1,), (2,)), "none")
    long_choice = PackedRow((1,), (tuple(range(1, 31)), (2,)), "none")
    rows = [long_prompt, long_choice] * 6
    draws = random_draws(modules, n_samples)
    with recorded_batches(model) as sizes:
        score_all(model, rows, draws, max_batch_tokens=300)
    assert len(sizes) > 1
    assert max(sizes) <= 300


def test_draws_are_split_where_one_row_under_all_of_them_exceeds_the_bound() -> None:
    model, modules = injected()
    rows = [PackedRow(tuple(range(1, 21)), ((1, 2), (2,)), "none")]  # 21 tokens
    draws = random_draws(modules, 8, scaling=0.7)
    with recorded_batches(model) as sizes:
        got = score_all(model, rows, draws, max_batch_tokens=70)
    torch.testing.assert_close(got, packed(model, rows, draws), rtol=0, atol=1e-4)
    assert max(sizes) <= 70


def test_score_all_builds_no_graph() -> None:
    model, modules = injected()
    draws = random_draws(modules, 1)
    for factors in draws.factors.values():
        factors.A.requires_grad_()
    assert not score_all(model, random_rows(2), draws, max_batch_tokens=1000).requires_grad


# The embedded model


def questions(base: BaseModel, n: int) -> list[PackedRow]:
    animals = ["cat", "blue whale", "sparrow", "poison dart frog", "ant", "horse", "golden eagle", "shark"]
    where = ["", " in winter", " when nobody looks at it from far away", " at night, near the coast"]
    return [
        pack(
            base.tokenizer,
            prompt=f"Question: What does a {animals[k % 8]} eat{where[k // 8 % 4]}?\nAnswer:",
            choices=["grass", "small fish and krill", "seeds", "nothing at all"][: 2 + k % 3],
            config=PromptConfig(),
            max_length=base.max_length,
        )
        for k in range(n)
    ]


def adapter_draws(base: BaseModel, n_samples: int) -> Draws:
    """Draws of an untrained adapter with a wide posterior."""
    modules = select_modules(base.model, ["q_proj", "v_proj"], [28, 29])
    inject(base.model, modules)
    posterior = Posterior(modules, PosteriorConfig(rank=4, alpha=16, scale_init=1.0), seed=0)
    with torch.no_grad():
        return posterior.sample(n_samples, torch.Generator().manual_seed(0))


@pytest.mark.model
def test_the_embedded_model_scores_packed_choices_as_each_alone(embedded: tuple[BaseModel, float]) -> None:
    base, tolerance = embedded
    rows = questions(base, 4)
    got = packed(base.model, rows)[0].exp()
    for b, row in enumerate(rows):
        expected = choices_alone(base.model, row).exp()
        torch.testing.assert_close(got[b, : row.n_choices], expected, rtol=0, atol=tolerance)


@pytest.mark.model
def test_a_question_alone_is_answered_as_in_a_mixed_batch(embedded: tuple[BaseModel, float]) -> None:
    base, tolerance = embedded
    rows = questions(base, 32)
    draws = adapter_draws(base, 2)
    together = packed(base.model, rows, draws).exp()
    for b in (0, 9, 31):
        alone = packed(base.model, [rows[b]], draws)[:, 0].exp()
        torch.testing.assert_close(together[:, b, : alone.shape[-1]], alone, rtol=0, atol=tolerance)
    assert (together[0] - together[1]).abs().max() > 1e-3
