"""A head's draws against closed forms."""

from dataclasses import asdict, replace

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from blora.config import HeadConfig, PosteriorConfig
from blora.errors import ConfigError, ShapeError
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import DecisionHead, Features, HeadPosterior
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.head.train import default_head
from tests.heads import head_of, row_after_row, texts_with

CONFIG = HeadConfig(depths=(1, 2), n_states=6, n_directions=4, n_grams=5)


def posterior(head: DecisionHead) -> HeadPosterior:
    return HeadPosterior(head, Posterior({}, PosteriorConfig(method="lora"), seed=0))


# Settings of a head that gives each choice a number.
OF_CHOICES = replace(CONFIG, n_grams=0)


def features(*shape: int) -> Features:
    generator = torch.Generator().manual_seed(3)
    return Features(torch.randn(*shape, 6, generator=generator), torch.randn(*shape, 3, generator=generator))


def of_texts(head: DecisionHead, counts: Tensor) -> Features:
    """The features of texts that have the n-grams of a head as often as counts (B, 5) say."""
    found = features(len(counts))
    return replace(found, counts=found.counts[:, :0], grams=texts_with(counts, head.grams))


def by_hand(head: DecisionHead, weight: Tensor, states: Tensor, c: Tensor) -> Tensor:
    z = head.directions.double() @ ((states - head.center) / head.scale).double()
    return weight.double().T @ z + head.count_weight.double().T @ c.double() + head.bias.double()


def test_logits_are_those_of_each_draw_by_hand() -> None:
    head = head_of(CONFIG, 3)
    draws = posterior(head).sample(2, generator_of(1))
    counts = torch.randint(0, 3, (7, 5), generator=torch.Generator().manual_seed(4))
    asked = of_texts(head, counts)
    found = draws.logits(asked)
    assert found.shape == (2, 7, 3)
    of_words = head.grams % 2 == 1
    assert 0 < of_words.sum() < 5
    for s in range(2):
        for b in range(7):
            c = torch.where(counts[b] > 0, (1 + counts[b].clamp_min(1).log()) * head.count_scale, 0.0)
            for kind in (of_words, ~of_words):
                c[kind] /= c[kind].norm().clamp_min(1e-9)
            expected = by_hand(head, draws.weights[s], asked.states[b], c)
            torch.testing.assert_close(found[s, b].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_head_of_one_output_gives_each_choice_a_number() -> None:
    head = head_of(OF_CHOICES, 1)
    draws = posterior(head).sample(2, generator_of(1))
    asked = features(7, 4)
    found = draws.logits(asked)
    assert found.shape == (2, 7, 4)
    expected = by_hand(head, draws.weights[1], asked.states[5, 2], asked.counts[5, 2] * head.count_scale)
    torch.testing.assert_close(found[1, 5, 2].double(), expected[0], rtol=1e-4, atol=1e-4)


def test_a_choice_is_read_in_the_light_of_the_prompt() -> None:
    head = head_of(replace(OF_CHOICES, n_products=(3, 2)), 1)
    draws = posterior(head).sample(2, generator_of(1))
    asked = features(7, 4)
    asked = replace(asked, prompt=features(7).states)
    found = draws.logits(asked)
    prompt = asked.prompt[5].double()  # type: ignore[index]
    p = head.prompt_directions.double() @ ((prompt - head.prompt_center) / head.prompt_scale)
    z = head.directions.double() @ ((asked.states[5, 2] - head.center) / head.scale).double()
    own, of_products = draws.weights[1, :4, 0].double(), draws.weights[1, 4:, 0].double()
    c = (asked.counts[5, 2] * head.count_scale).double()
    expected = own @ z + of_products @ torch.kron(p, z[:2]) + head.count_weight[:, 0].double() @ c + head.bias[0]
    torch.testing.assert_close(found[1, 5, 2].double(), expected, rtol=1e-4, atol=1e-4)
    without = replace(draws, head=head.without_products(), weights=draws.weights[:, :4])
    assert without.head.tensors().keys() == head_of(OF_CHOICES, 1).tensors().keys()
    torch.testing.assert_close(
        without.logits(asked)[1, 5, 2].double(), expected - of_products @ torch.kron(p, z[:2]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("n_products", [(0, 2), (3, 0), (3, 5), (-1, -2), (2**15, 4)])
def test_products_of_directions_that_are_not_there_are_refused(n_products: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="got n_products = "):
        replace(OF_CHOICES, n_products=n_products)
    with pytest.raises(ConfigError, match="no n-grams"):
        replace(CONFIG, n_products=(3, 2))


@pytest.mark.parametrize("mirrored", [False, True])
def test_draws_have_the_mean_and_the_covariance_of_the_posterior(mirrored: bool) -> None:
    head = head_of(replace(CONFIG, mirrored=mirrored), 3)
    draws = posterior(head).sample(40000, generator_of(0)).weights.double()
    weight, deviation, basis = (part.double() for part in (head.weight, head.deviation, head.basis))
    error = (draws.mean(0) - weight).abs() / deviation.square().sum(1, keepdim=True).sqrt()
    assert error.max() < 0.03
    for k in range(4):
        expected = basis @ torch.diag(deviation[k].square()) @ basis.T
        found = torch.cov(draws[:, k].T)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.diagonal().max()))


@pytest.mark.parametrize("mirrored", [False, True])
def test_draws_nest_and_are_the_same_again(mirrored: bool) -> None:
    source = posterior(head_of(replace(CONFIG, mirrored=mirrored), 3))
    eight, three = (SampleBank.draw(source, "digest", n, 7).draws for n in (8, 3))
    assert torch.equal(eight.part(0, 3).weights, three.weights)  # type: ignore[union-attr]


def test_a_head_that_does_not_say_how_it_draws_draws_independently() -> None:
    before = {name: value for name, value in asdict(CONFIG).items() if name != "mirrored"}
    source = posterior(head_of(TypeAdapter(HeadConfig).validate_python(before), 3))
    first, second = source.sample(2, generator_of(0)).weights - source.head.weight
    assert not torch.allclose(second, -first)
    assert default_head(30, 576, linear=True).mirrored  # a new one


@pytest.mark.parametrize(("config", "n_outputs"), [(CONFIG, 3), (replace(OF_CHOICES, n_products=(3, 2)), 1)])
def test_mirrored_draws_average_to_the_logits_of_the_posterior_mean(config: HeadConfig, n_outputs: int) -> None:
    source = posterior(head_of(replace(config, mirrored=True), n_outputs))
    asked, own = features(7), features(7, 4)
    asked = replace(own, prompt=asked.states) if n_outputs == 1 else of_texts(source.head, torch.ones(7, 5))
    mean, six = (draws.logits(asked) for draws in (source.mean(), source.sample(6, generator_of(2))))
    torch.testing.assert_close(six.mean(0), mean[0], rtol=1e-4, atol=1e-4)
    assert (six[0] - mean[0]).abs().mean() > 0.01


def test_widening_moves_draws_away_from_the_mean_in_proportion() -> None:
    source = posterior(head_of(CONFIG, 3))
    near = source.sample(3, generator_of(0)).weights - source.head.weight
    source.widen(2.0)
    torch.testing.assert_close(source.sample(3, generator_of(0)).weights - source.head.weight, 2 * near)
    with pytest.raises(ConfigError):
        source.widen(0.0)


def test_choices_row_after_row_are_counted_and_picked_by_question() -> None:
    found = features(3, 4)
    flat = row_after_row(found, [4, 2, 3])
    assert len(flat) == 3
    picked, expected = flat.at([2, 0, 2]), row_after_row(found.at([2, 0, 2]), [3, 4, 3])
    assert len(picked) == 3
    for name in ("states", "counts", "owner"):
        torch.testing.assert_close(getattr(picked, name), getattr(expected, name))


def test_features_of_another_head_are_refused() -> None:
    head = head_of(CONFIG, 3)
    draws = posterior(head).mean()
    with pytest.raises(ShapeError, match=r"got \(6, 4\) states and counts of a question, expected \(6, 0\)"):
        draws.logits(replace(of_texts(head, torch.ones(2, 5)), counts=torch.zeros(2, 4)))
    with pytest.raises(ShapeError, match="got n-grams of 0 texts, expected 2"):
        draws.logits(replace(of_texts(head, torch.ones(2, 5)), grams=()))
