import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blora.decision.metrics import accuracy, aurc, bin_of, brier, ece, metrics, nll
from blora.errors import NumericalError, ShapeError

METRICS = {
    "accuracy": accuracy,
    "nll": nll,
    "brier": brier,
    "ece": ece,
    "ece_adaptive": lambda probs, labels: ece(probs, labels, binning="adaptive"),
    "aurc": aurc,
}

# Confidences 0.9, 0.8, 0.7, 0.6; right, right, wrong, right.
CONFIDENCE = torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64)
PROBS = torch.stack([CONFIDENCE, 1 - CONFIDENCE], 1)
LABELS = torch.tensor([0, 0, 1, 0])


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    B, C = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = draw(st.sampled_from([0.1, 1.0, 5.0])) * torch.randn(B, C, generator=generator, dtype=torch.float64)
    return logits.softmax(-1), torch.randint(C, (B,), generator=generator)


def binary(confidence: list[float], correct: list[int]) -> tuple[Tensor, Tensor]:
    """Two-way predictions for choice 0 with these confidences, each right or wrong."""
    first = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([first, 1 - first], 1), 1 - torch.tensor(correct)


# Values worked out by hand


def test_hand_computed_values() -> None:
    assert accuracy(PROBS, LABELS) == 0.75
    assert nll(PROBS, LABELS) == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.3) + math.log(0.6)) / 4)
    assert brier(PROBS, LABELS) == pytest.approx(2 * (0.1**2 + 0.2**2 + 0.7**2 + 0.4**2) / 4)
    # Risk among the 1, 2, 3, 4 most confident: 0, 0, 1/3, 1/4.
    assert aurc(PROBS, LABELS) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)


def test_hand_computed_calibration_errors() -> None:
    assert ece(PROBS, LABELS) == pytest.approx((0.1 + 0.2 + 0.7 + 0.4) / 4)  # a bin each
    assert ece(PROBS, LABELS, n_bins=1) == pytest.approx(0)  # mean confidence 0.75, accuracy 0.75
    # Bins of two: (0.6, 0.7) is right once, (0.8, 0.9) twice.
    assert ece(PROBS, LABELS, n_bins=2, binning="adaptive") == pytest.approx((0.3 + 0.3) / 4)
    # (0.5, 1] holds everything.
    assert ece(PROBS, LABELS, n_bins=2) == pytest.approx(0)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one() -> None:
    # 0.5 belongs to (0, 0.5] and 0.75 to (0.5, 1]: were they together, their gaps would cancel.
    probs, labels = binary([0.5, 0.75], [1, 0])
    assert ece(probs, labels, n_bins=2) == pytest.approx((0.5 + 0.75) / 2)


@pytest.mark.parametrize(
    ("name", "best", "worst"),
    [
        ("accuracy", 1, 0),
        ("brier", 0, 2),
        ("ece", 0, 1),
        ("ece_adaptive", 0, 1),
        ("aurc", 0, 1),
        ("nll", 0, -math.log(torch.finfo(torch.float32).tiny)),
    ],
)
def test_sure_and_right_is_the_best_value_and_sure_and_wrong_the_worst(name: str, best: float, worst: float) -> None:
    probs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert METRICS[name](probs, torch.tensor([0, 1])) == pytest.approx(best, abs=1e-12)
    assert METRICS[name](probs, torch.tensor([1, 0])) == pytest.approx(worst)


def test_a_choice_that_a_question_does_not_have_changes_nothing() -> None:
    wider = torch.cat([PROBS, torch.zeros(4, 1)], 1)
    for metric in METRICS.values():
        assert metric(wider, LABELS) == pytest.approx(metric(PROBS, LABELS))


# Against other code


@given(prediction=predictions(), n_bins=st.integers(1, 20))
def test_equal_width_ece_is_that_of_a_loop_over_bins(prediction: tuple[Tensor, Tensor], n_bins: int) -> None:
    probs, labels = prediction[0].numpy(), prediction[1].numpy()
    confidence, right = probs.max(1), probs.argmax(1) == labels
    expected = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, n_bins + 1)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert ece(*prediction, n_bins=n_bins) == pytest.approx(expected, abs=1e-12)


def test_a_confidence_that_rounding_moves_beyond_its_range_is_in_the_outermost_bin() -> None:
    confidence = torch.tensor([0.0, 1e-300, 0.2, 0.2 + 1e-12, 1.0, 1 + 2**-52, 1 + 1e-6], dtype=torch.float64)
    assert bin_of(confidence, 5).tolist() == [0, 0, 0, 1, 4, 4, 4]


@given(prediction=predictions(), n_bins=st.integers(1, 20))
def test_adaptive_ece_is_that_of_a_split_of_the_sorted_rows(prediction: tuple[Tensor, Tensor], n_bins: int) -> None:
    probs, labels = prediction[0].numpy(), prediction[1].numpy()
    confidence, right = probs.max(1), probs.argmax(1) == labels
    order = np.argsort(confidence)
    starts = [math.ceil(k * len(order) / n_bins) for k in range(n_bins + 1)]
    expected = 0.0
    for start, stop in itertools.pairwise(starts):
        inside = order[start:stop]
        expected += abs(right[inside].sum() - confidence[inside].sum()) / len(order)
    assert ece(*prediction, n_bins=n_bins, binning="adaptive") == pytest.approx(expected, abs=1e-12)


@given(prediction=predictions())
def test_nll_brier_accuracy_and_aurc_are_those_of_numpy(prediction: tuple[Tensor, Tensor]) -> None:
    probs, labels = prediction[0].numpy(), prediction[1].numpy()
    rows = np.arange(len(labels))
    assert nll(*prediction) == pytest.approx(-np.log(probs[rows, labels]).mean())
    assert brier(*prediction) == pytest.approx(((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(1).mean())
    wrong = probs.argmax(1) != labels
    assert accuracy(*prediction) == pytest.approx(1 - wrong.mean())
    risk = np.cumsum(wrong[np.argsort(-probs.max(1))]) / (rows + 1)  # confidences are all different
    assert aurc(*prediction) == pytest.approx(risk.mean())


def test_aurc_with_ties_is_the_average_over_every_order_of_the_tied_rows() -> None:
    confidence, correct = [0.9, 0.8, 0.8, 0.8, 0.6, 0.6], [1, 0, 1, 1, 0, 1]
    areas = []
    for order in itertools.permutations(range(6)):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            wrong = np.cumsum([1 - correct[i] for i in order])
            areas.append((wrong / np.arange(1, 7)).mean())
    assert len(areas) == 12
    assert aurc(*binary(confidence, correct)) == pytest.approx(np.mean(areas))


def test_aurc_of_equal_confidences_is_the_error_rate() -> None:
    assert aurc(*binary([0.7] * 8, [1, 1, 0, 1, 0, 0, 1, 1])) == pytest.approx(3 / 8)


# Properties


@given(prediction=predictions(), seed=st.integers(0, 2**31))
def test_the_order_of_rows_changes_nothing(prediction: tuple[Tensor, Tensor], seed: int) -> None:
    probs, labels = prediction
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for name, metric in METRICS.items():
        assert metric(probs[order], labels[order]) == pytest.approx(metric(probs, labels), abs=1e-12), name


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_rows_of_equal_confidence_changes_nothing(name: str) -> None:
    probs, labels = binary([0.8] * 40, [1, 0] * 20)
    order = labels.argsort(stable=True)
    assert METRICS[name](probs[order], labels[order]) == pytest.approx(METRICS[name](probs, labels), abs=1e-12)


@given(prediction=predictions())
def test_every_metric_stays_in_its_range(prediction: tuple[Tensor, Tensor]) -> None:
    upper = {"nll": math.inf, "brier": 2}
    for name, metric in METRICS.items():
        assert 0 <= metric(*prediction) <= upper.get(name, 1) + 1e-12


def test_half_precision_probabilities_are_taken() -> None:
    assert brier(PROBS.to(torch.bfloat16), LABELS) == pytest.approx(brier(PROBS, LABELS), abs=0.01)


def test_metrics_holds_all_of_them() -> None:
    got = metrics(PROBS, LABELS)
    assert got.to_dict() == {name: pytest.approx(metric(PROBS, LABELS)) for name, metric in METRICS.items()}
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.ece = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("probs", "labels"),
    [((4, 2), (3,)), ((2, 4, 2), (4,)), ((4,), (4,)), ((4, 2), (4, 1)), ((0, 2), (0,))],
)
def test_shapes_that_do_not_fit_are_refused(probs: tuple[int, ...], labels: tuple[int, ...], name: str) -> None:
    with pytest.raises(ShapeError, match=r"expected \(B, C\) and \(B,\), B >= 1"):
        METRICS[name](torch.full(probs, 0.5), torch.zeros(labels, dtype=torch.long))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_probabilities_that_are_not_finite_are_refused(value: float) -> None:
    probs = PROBS.clone()
    probs[2, 1] = value
    for metric in (*METRICS.values(), metrics):
        with pytest.raises(NumericalError, match=r"not finite in 1 of 4 rows, row 2 the first"):
            metric(probs, LABELS)
