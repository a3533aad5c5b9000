import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from blora.decision.uncertainty import summarize
from blora.errors import NumericalError, ShapeError
from blora.scores import DRAWN, TABLE, expected_entropy, mutual_information, predictive_entropy
from tests.blora.test_scores import probabilities


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
    assert got.scores() == {name: getattr(got, name) for name in DRAWN}
    for name, score in DRAWN.items():
        assert got.scores()[name] == pytest.approx(score.values(probs)[0].item(), abs=1e-9)


def test_a_familiarity_is_a_score_where_it_is_known() -> None:
    probs = torch.tensor([[0.2, 0.8]])
    unknown, known = summarize(probs), summarize(probs, 0.25)
    assert (unknown.familiarity, known.familiarity) == (None, 0.25)
    assert list(known.scores()) == [score.name for score in TABLE]
    assert known.scores() == unknown.scores() | {"familiarity": 0.25}


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
    assert all(type(x) is float for x in (*got.probabilities, *got.std, *got.scores().values()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_probabilities_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(NumericalError, match="not finite"):
        summarize(torch.tensor([[value, 0.5]]))


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 3)])
def test_a_summary_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="got probabilities of shape"):
        summarize(torch.ones(shape) / 3)
