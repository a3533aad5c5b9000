"""Sums over the vocabulary that draws share, against each draw's own."""

import pytest
import torch
from torch import Tensor, nn

from blora.base_model import BaseModel
from blora.config import PosteriorConfig, PromptConfig
from blora.inference import scoring, vocabulary
from blora.inference.batches import collate
from blora.inference.checkpoints import checkpoints
from blora.inference.fork import hidden_at
from blora.inference.interruptible import make_interruptible
from blora.inference.packing import PackedRow, pack
from blora.inference.scoring import at_positions
from blora.inference.vocabulary import Head, log_probs_along_draws, log_probs_of_each, plain_head
from blora.posterior.draws import use_draws
from blora.posterior.inject import inject, select_modules
from blora.posterior.posterior import Posterior
from tests.scenarios import DECODERS, injected, random_draws, random_rows, score, tiny_model

V, D, S, P = 8192, 16, 6, 5
# Whose logits are capped.
NOT_PLAIN = {"gemma2"}


def random_head(dtype: torch.dtype = torch.float32) -> Head:
    """A head in front of a decoder of some dtype, whose sums are estimated."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(V, D, generator=generator)
    rounded = weight.to(dtype)
    return Head(weight, torch.randn(V, generator=generator), rounded, rounded[:: vocabulary.STRIDE])


def states(spread: float) -> Tensor:
    """(S, P, D) around a mean that few tokens suit."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(P, D, generator=generator) + spread * torch.randn(S, P, D, generator=generator)


def difference(head: Head, hidden: Tensor) -> float:
    place, token = torch.tensor([0, 1, 1, 4]), torch.tensor([5, 0, 8191, 77])
    exact = (hidden @ head.weight.mT + head.bias).log_softmax(-1)[:, place, token]
    return float((log_probs_along_draws(head, hidden, place, token) - exact).abs().max())


def test_draws_that_are_all_alike_get_the_exact_sum() -> None:
    assert difference(random_head(), states(0.0)) < 1e-5


def test_the_error_shrinks_with_the_spread() -> None:
    wide, narrow = difference(random_head(), states(0.1)), difference(random_head(), states(0.025))
    assert 3 * narrow < wide < 0.02


def test_positions_at_which_draws_lie_far_apart_are_added_up_in_full() -> None:
    assert difference(random_head(), states(30.0)) < 1e-3


def test_more_tokens_of_their_own_leave_less_out(monkeypatch: pytest.MonkeyPatch) -> None:
    few = difference(random_head(), states(0.2))
    monkeypatch.setattr(vocabulary, "N_KEPT", V // 2)
    assert 2 * difference(random_head(), states(0.2)) < few


def test_a_rounded_weight_changes_the_sum_but_not_the_logits() -> None:
    assert difference(random_head(torch.bfloat16), states(0.0)) < 5e-3


def test_positions_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden = random_head(), states(0.1)
    arguments = (torch.arange(P), torch.arange(P))
    expected = log_probs_along_draws(head, hidden, *arguments)
    monkeypatch.setattr(vocabulary, "CHUNK_ELEMENTS", 2 * V)
    torch.testing.assert_close(log_probs_along_draws(head, hidden, *arguments), expected)


# Exact ones


def test_a_float32_decoder_gets_exact_sums_where_an_estimate_is_wrong_without_noticing() -> None:
    module = nn.Linear(D, V)
    raised = vocabulary.STRIDE * 1000 + 1  # neither among the likeliest tokens nor among the sampled ones
    with torch.no_grad():
        module.weight.zero_()
        module.weight[raised, 0] = 1.0
        module.bias.zero_()
        module.bias[: vocabulary.N_KEPT] = 6.0
    hidden = torch.zeros(4, 1, D)
    hidden[:, 0, 0] = torch.tensor([12.0, -4.0, -4.0, -4.0])  # around a mean of zero
    at = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        exact = module(hidden).log_softmax(-1)[:, at, at]
        estimating = Head(module.weight, module.bias, module.weight, module.weight[:: vocabulary.STRIDE])
        assert (log_probs_along_draws(estimating, hidden, at, at) - exact).abs().max() > 0.3
        found = log_probs_along_draws(Head.of(module, torch.float32), hidden, at, at)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3)


def test_a_head_goes_where_its_model_goes() -> None:
    model = nn.ModuleDict({"head": nn.Linear(D, V)})
    module = model["head"]
    before = Head.of(module, torch.bfloat16)
    model.to("meta")
    after = Head.of(module, torch.bfloat16)
    assert after.sampled is not None
    assert {after.weight.device.type, after.rounded.device.type, after.sampled.device.type} == {"meta"}
    assert before.rounded.dtype == after.rounded.dtype == torch.bfloat16
    assert not any("blora" in name for name in model.state_dict())


def test_exact_log_probabilities_and_their_gradients_are_those_of_plain_torch() -> None:
    head, place, token = random_head(), torch.tensor([0, 1, 1, 4]), torch.tensor([5, 0, 8191, 77])
    hidden = states(0.5).requires_grad_()
    slow = (hidden @ head.weight.mT + head.bias).log_softmax(-1)[:, place, token]
    fast = log_probs_of_each(head, hidden, place, token)
    torch.testing.assert_close(fast, slow)
    gradients = (torch.autograd.grad(found.square().sum(), hidden)[0] for found in (fast, slow))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_a_rounded_weight_hardly_changes_the_gradient() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        hidden = states(0.5).requires_grad_()
        arguments = (torch.arange(P), torch.arange(P))
        log_probs = log_probs_of_each(random_head(dtype), hidden, *arguments)
        found.append(torch.autograd.grad(log_probs.sum(), hidden)[0])
    exact, rounded = found
    assert 0 < (rounded - exact).norm() < 0.01 * exact.norm()


# Which heads are plain


@pytest.fixture
def small_vocabularies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the tiny models' vocabularies pass for large ones."""
    monkeypatch.setattr(vocabulary, "MIN_VOCABULARY", 1)
    monkeypatch.setattr(vocabulary, "N_KEPT", 64)


def test_a_small_vocabulary_is_added_up_for_every_draw() -> None:
    assert plain_head(tiny_model()) is None


@pytest.mark.usefixtures("small_vocabularies")
@pytest.mark.parametrize("architecture", DECODERS)
def test_the_shared_sum_is_each_draws_own_whatever_the_architecture(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, modules = injected(architecture)
    assert (plain_head(model) is None) == (architecture in NOT_PLAIN)
    draws, batch = random_draws(modules, S, scaling=0.02), collate(random_rows(3))
    with torch.no_grad():
        shared = score(model, batch, draws)
        monkeypatch.setattr(scoring, "plain_head", lambda model: None)
        own = score(model, batch, draws)
    error, spread = (shared - own).nan_to_num().abs().max(), (own[0] - own[1]).nan_to_num().abs().max()
    assert error < 0.2 * spread


@pytest.mark.usefixtures("small_vocabularies")
def test_a_head_that_is_no_linear_layer_is_not_plain() -> None:
    model = tiny_model()
    model.lm_head = nn.Sequential(model.lm_head)
    assert plain_head(model) is None


@pytest.mark.usefixtures("small_vocabularies")
def test_no_other_pass_runs_while_a_head_is_tested() -> None:
    model = tiny_model()
    make_interruptible(model)

    def other() -> None:
        raise AssertionError("another pass runs")

    with checkpoints(other):
        assert plain_head(model) is not None


@pytest.mark.usefixtures("small_vocabularies")
def test_a_test_of_a_head_that_fails_leaves_no_hook() -> None:
    model = tiny_model()
    embedding, model.model.embed_tokens = model.model.embed_tokens, nn.Module()
    with pytest.raises(NotImplementedError):
        plain_head(model)
    model.model.embed_tokens = embedding
    assert not model.lm_head._forward_pre_hooks
    assert plain_head(model) is not None


# The embedded model


def questions(base: BaseModel) -> list[PackedRow]:
    prompts = ["What do plants need to grow?", "Which planet is nearest to the sun?", "Why does ice float on water?"]
    choices = ["sunlight and water", "Mercury", "because it is less dense than the water below it"]
    return [
        pack(base.tokenizer, prompt=prompt, choices=choices, config=PromptConfig(), max_length=base.max_length)
        for prompt in prompts
    ]


@pytest.mark.model
@torch.no_grad()
def test_sums_are_those_of_each_draw(embedded: tuple[BaseModel, float]) -> None:
    """Under a posterior that is wider than any that training ends with."""
    base, tolerance = embedded
    modules = select_modules(base.model, ["q_proj", "v_proj"], range(20, 30))
    inject(base.model, modules)
    wide = PosteriorConfig(lambda_init=0.7, scale_init=0.1)
    draws = Posterior(modules, wide, seed=0).sample(8, torch.Generator().manual_seed(0))
    batch, head = collate(questions(base)), plain_head(base.model)
    assert head is not None
    with use_draws(draws):
        hidden = at_positions(hidden_at, base.model, batch, None, 8).float()
    shared, own = (f(head, hidden, batch.place, batch.token) for f in (log_probs_along_draws, log_probs_of_each))
    spread = own.std(0).max()
    assert (shared - own).abs().max() < max(tolerance, 0.2 * spread)  # the estimate errs with the spread of the draws
    assert spread > tolerance
