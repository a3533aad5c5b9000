import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blora.decision.uncertainty import (
    entropy,
    expected_entropy,
    mutual_information,
    predictive_entropy,
    predictive_mean,
    summarize,
)
from blora.errors import NumericalError, ShapeError

LOG_2 = math.log(2)


@st.composite
def probabilities(draw: st.DrawFn) -> Tensor:
    """(S, B, C) in float64, from nearly uniform to one-hot, some choices missing."""
    S, B, C = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    spread = draw(st.sampled_from([0.01, 1.0, 10.0, 1000.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = spread * torch.randn(S, B, C, generator=generator, dtype=torch.float64)
    logits[:, 0, 2:] = -torch.inf
    return logits.softmax(-1)


# Values worked out by hand


def test_draws_that_are_sure_and_disagree_are_epistemic_only() -> None:
    probs = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert predictive_mean(probs).tolist() == [[0.5, 0.5]]
    assert predictive_entropy(probs).item() == pytest.approx(LOG_2)
    assert expected_entropy(probs).item() == 0
    assert mutual_information(probs).item() == pytest.approx(LOG_2)


def test_draws_that_agree_are_aleatoric_only() -> None:
    probs = torch.tensor([[[0.25, 0.75]]] * 3, dtype=torch.float64)
    total = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert predictive_entropy(probs).item() == pytest.approx(total)
    assert expected_entropy(probs).item() == pytest.approx(total)
    assert mutual_information(probs).item() == pytest.approx(0, abs=1e-15)


def test_a_mixed_case() -> None:
    probs = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64)
    total = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    aleatoric = (LOG_2 - (0.9 * math.log(0.9) + 0.1 * math.log(0.1))) / 2
    assert mutual_information(probs).item() == pytest.approx(total - aleatoric)


def test_probabilities_are_averaged_and_not_logits() -> None:
    # Averaging logits of (0.99, 0.01) and (0.4, 0.6) would give 0.891.
    probs = torch.tensor([[[0.99, 0.01]], [[0.4, 0.6]]], dtype=torch.float64)
    assert predictive_mean(probs)[0, 0].item() == pytest.approx(0.695)


def test_entropy_is_over_the_last_dimension_and_takes_zeros() -> None:
    probs = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    torch.testing.assert_close(entropy(probs), torch.tensor([[LOG_2, 0.0]]))


# Properties


@given(probs=probabilities())
def test_uncertainties_are_bounded(probs: Tensor) -> None:
    n_choices = (probs > 0).any(0).sum(-1)
    bound = n_choices.double().log() + 1e-12
    total, aleatoric, epistemic = (f(probs) for f in (predictive_entropy, expected_entropy, mutual_information))
    assert (aleatoric >= 0).all()
    assert (epistemic >= -1e-12).all()
    assert (total <= bound).all()
    assert (epistemic <= math.log(probs.shape[0]) + 1e-12).all()  # a draw tells at most its own index
    torch.testing.assert_close(total, aleatoric + epistemic)


@given(probs=probabilities(), seed=st.integers(0, 2**31))
def test_the_order_of_draws_rows_and_choices_changes_nothing(probs: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    s, b, c = (torch.randperm(n, generator=generator) for n in probs.shape)
    for quantity in (predictive_entropy, expected_entropy, mutual_information):
        torch.testing.assert_close(quantity(probs[s][:, b][:, :, c]), quantity(probs)[b])
    torch.testing.assert_close(predictive_mean(probs[s][:, b]), predictive_mean(probs)[b])


@given(probs=probabilities())
def test_repeating_the_draws_changes_nothing(probs: Tensor) -> None:
    for quantity in (predictive_mean, predictive_entropy, expected_entropy, mutual_information):
        torch.testing.assert_close(quantity(probs.repeat(3, 1, 1)), quantity(probs))


def test_a_single_draw_has_no_epistemic_uncertainty() -> None:
    probs = torch.tensor([[[0.2, 0.8]]])
    assert mutual_information(probs).item() == 0


@pytest.mark.parametrize("quantity", [predictive_mean, predictive_entropy, expected_entropy, mutual_information])
@pytest.mark.parametrize("shape", [(3, 2), (0, 3, 2), (2, 2, 3, 2)])
def test_another_shape_is_refused(shape: tuple[int, ...], quantity: object) -> None:
    with pytest.raises(ShapeError, match=r"expected \(S, B, C\) with S >= 1"):
        quantity(torch.ones(shape) / 2)  # type: ignore[operator]


# The summary of one question


def test_summary_of_one_question() -> None:
    got = summarize(torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64))
    assert got.probabilities == pytest.approx((0.7, 0.3))
    assert got.std == pytest.approx((0.2, 0.2))
    assert got.top == 0
    assert got.confidence == pytest.approx(0.7)
    assert got.predictive_entropy == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)))
    assert got.mutual_information == pytest.approx(got.predictive_entropy - got.expected_entropy)
    assert got.mutual_information > 0


@given(probs=probabilities())
def test_a_summary_is_the_row_of_the_batched_quantities(probs: Tensor) -> None:
    got = summarize(probs[:, 0])
    assert sum(got.probabilities) == pytest.approx(1, abs=1e-12)
    assert got.confidence == max(got.probabilities) == got.probabilities[got.top]
    assert got.predictive_entropy == pytest.approx(predictive_entropy(probs)[0].item(), abs=1e-9)
    assert got.expected_entropy == pytest.approx(expected_entropy(probs)[0].item(), abs=1e-9)
    assert got.mutual_information == pytest.approx(mutual_information(probs)[0].item(), abs=1e-9)
    assert got.mutual_information >= 0


def test_a_summary_of_float32_rows_sums_to_one_in_float64() -> None:
    probs = torch.randn(16, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert sum(summarize(probs).probabilities) == pytest.approx(1, abs=1e-15)


def test_the_first_of_equal_choices_is_the_top_one() -> None:
    assert summarize(torch.tensor([[0.2, 0.4, 0.4]])).top == 1


def test_a_single_draw_has_no_spread() -> None:
    assert summarize(torch.tensor([[0.2, 0.8]])).std == (0.0, 0.0)


def test_a_summary_holds_plain_numbers() -> None:
    got = summarize(torch.tensor([[0.2, 0.8]]))
    assert type(got.confidence) is float
    assert type(got.top) is int
    assert all(type(x) is float for x in (*got.probabilities, *got.std))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_probabilities_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(NumericalError, match="not finite"):
        summarize(torch.tensor([[value, 0.5]]))


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 3)])
def test_a_summary_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="got probabilities of shape"):
        summarize(torch.ones(shape) / 3)
