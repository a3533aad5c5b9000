import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blora.decision.curves import ReliabilityBin, auroc, reliability, risk_coverage
from blora.decision.metrics import accuracy, aurc, ece
from blora.errors import ConfigError, NumericalError, ShapeError

# Confidences 0.9, 0.8, 0.7, 0.6; right, right, wrong, right.
CONFIDENCE = torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64)
PROBS = torch.stack([CONFIDENCE, 1 - CONFIDENCE], 1)
LABELS = torch.tensor([0, 0, 1, 0])
CORRECT = LABELS == 0


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Of a few distinct values each, so that ties are common."""
    B, C = draw(st.integers(1, 150)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randint(draw(st.sampled_from([2, 1000])), (B, C), generator=generator).double() / 100
    return logits.softmax(-1), torch.randint(C, (B,), generator=generator)


@st.composite
def scores(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """With a positive and a negative at least."""
    N = draw(st.integers(2, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    score = torch.randint(draw(st.sampled_from([1, 3, 1000])), (N,), generator=generator).double()
    positive = torch.rand(N, generator=generator) < 0.5
    positive[:2] = torch.tensor([True, False])
    return score, positive


# Reliability


def test_hand_computed_bins() -> None:
    low, high = reliability(PROBS, LABELS, n_bins=4)[2:]
    assert low.to_dict() == {"count": 2, "confidence": pytest.approx(0.65), "accuracy": 0.5}
    assert high.to_dict() == {"count": 2, "confidence": pytest.approx(0.85), "accuracy": 1.0}


def test_a_bin_without_answers_has_a_count_and_nothing_else() -> None:
    assert reliability(PROBS, LABELS, n_bins=4)[0].to_dict() == {"count": 0, "confidence": None, "accuracy": None}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((3, None, 0.5), "a reliability bin of 3 answers with confidence None, accuracy 0.5, expected"),
        ((3, 0.5, None), "accuracy None"),
        ((0, 0.5, 0.5), "a reliability bin of 0 answers"),
        ((-1, 0.5, 0.5), "a reliability bin of -1 answers"),
        ((3, 1.1, 0.5), "confidence 1.1, accuracy 0.5, expected shares from 0 to 1"),
        ((3, 0.5, -0.1), "shares from 0 to 1"),
        ((3, float("nan"), 0.5), "shares from 0 to 1"),
    ],
)
def test_a_bin_that_cannot_be_is_refused(row: tuple[int, float | None, float | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReliabilityBin(*row)


def test_a_confidence_on_the_edge_of_two_bins_is_in_the_lower_one() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    assert [b.count for b in reliability(probs, torch.tensor([0, 0, 0]), n_bins=4)] == [0, 1, 1, 1]


@given(predictions(), st.integers(1, 30))
def test_the_bins_add_up_to_the_calibration_error_and_the_accuracy(case: tuple[Tensor, Tensor], n_bins: int) -> None:
    bins = reliability(*case, n_bins=n_bins)
    B = len(case[1])
    assert len(bins) == n_bins
    assert sum(b.count for b in bins) == B
    gaps = sum(b.count * abs(b.accuracy - b.confidence) for b in bins if b.count)
    assert gaps / B == pytest.approx(ece(*case, n_bins=n_bins), abs=1e-12)
    assert sum(b.count * b.accuracy for b in bins if b.count) / B == pytest.approx(accuracy(*case))


@given(predictions(), st.integers(1, 30))
def test_the_mean_confidence_of_a_bin_lies_within_it(case: tuple[Tensor, Tensor], n_bins: int) -> None:
    for k, b in enumerate(reliability(*case, n_bins=n_bins)):
        if b.count:
            assert k / n_bins - 1e-9 <= b.confidence <= (k + 1) / n_bins + 1e-9


# Risk and coverage


def test_hand_computed_risks() -> None:
    # Among the 1, 2, 3, 4 most confident 0, 0, 1, 1 are wrong.
    assert risk_coverage(CONFIDENCE, CORRECT) == [[0.25, 0], [0.5, 0], [0.75, pytest.approx(1 / 3)], [1, 0.25]]


def test_answers_of_equal_score_count_with_their_mean_error() -> None:
    score = torch.tensor([2.0, 1.0, 1.0])
    expected = [[pytest.approx(1 / 3), 0], [pytest.approx(2 / 3), 0.25], [1, pytest.approx(1 / 3)]]
    assert risk_coverage(score, torch.tensor([True, True, False])) == expected
    assert risk_coverage(score, torch.tensor([True, False, True])) == expected


def test_more_answers_than_points_are_evenly_spaced() -> None:
    curve = risk_coverage(torch.arange(1000), torch.arange(1000) >= 500, points=4)
    assert curve == [[0.25, 0], [0.5, 0], [0.75, pytest.approx(1 / 3)], [1, 0.5]]


@given(predictions())
def test_the_mean_risk_is_the_area_under_the_curve(case: tuple[Tensor, Tensor]) -> None:
    probs, labels = case
    confidence, top = probs.max(-1)
    curve = risk_coverage(confidence, top == labels, points=len(labels))
    assert sum(risk for _, risk in curve) / len(curve) == pytest.approx(aurc(*case))
    assert curve[-1] == [1, pytest.approx(1 - accuracy(*case))]


@given(predictions(), st.integers(1, 120))
def test_coverage_rises_to_one_in_no_more_points_than_asked_for(case: tuple[Tensor, Tensor], points: int) -> None:
    probs, labels = case
    confidence, top = probs.max(-1)
    curve = risk_coverage(confidence, top == labels, points=points)
    coverage = [c for c, _ in curve]
    assert len(curve) == min(points, len(labels))
    assert coverage == sorted(set(coverage))
    assert coverage[-1] == 1
    assert all(0 <= risk <= 1 for _, risk in curve)


# AUROC


@pytest.mark.parametrize(
    ("score", "positive", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 3, 2, 4], [0, 0, 1, 1], 0.75),  # of four pairs, one is the wrong way round
        ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),  # and here one is tied
    ],
)
def test_hand_computed_auroc(score: list[int], positive: list[int], expected: float) -> None:
    assert auroc(torch.tensor(score), torch.tensor(positive)) == expected


@pytest.mark.parametrize("flag", [True, False])
def test_one_class_alone_has_no_auroc(flag: bool) -> None:
    assert auroc(torch.tensor([0.1, 0.2]), torch.tensor([flag, flag])) is None


@given(scores())
def test_auroc_is_the_share_of_pairs_in_order(case: tuple[Tensor, Tensor]) -> None:
    score, positive = case
    pairs = [(p > n).double() + (p == n).double() / 2 for p in score[positive] for n in score[~positive]]
    assert auroc(score, positive) == pytest.approx(float(torch.stack(pairs).mean()))


@given(scores())
def test_auroc_of_the_opposite_score_is_the_rest(case: tuple[Tensor, Tensor]) -> None:
    score, positive = case
    assert auroc(-score, positive) == pytest.approx(1 - auroc(score, positive))
    assert auroc(score, ~positive) == pytest.approx(1 - auroc(score, positive))


# Refused


@pytest.mark.parametrize(
    ("probs", "labels"), [(torch.ones(3), torch.zeros(3)), (torch.ones(3, 2), torch.zeros(2)), (torch.ones(0, 2),) * 2]
)
def test_bins_of_the_wrong_shape_are_refused(probs: Tensor, labels: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"got probabilities \(.*expected \(B, C\) and \(B,\)"):
        reliability(probs, labels)


@pytest.mark.parametrize("curve", [risk_coverage, auroc])
@pytest.mark.parametrize(
    ("score", "flag"),
    [(torch.ones(2), torch.ones(3)), (torch.ones(2, 2), torch.ones(2, 2)), (torch.ones(0), torch.ones(0))],
)
def test_scores_of_the_wrong_shape_are_refused(curve: object, score: Tensor, flag: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"got scores \(.*, B >= 1"):
        curve(score, flag)  # type: ignore[operator]


@pytest.mark.parametrize("curve", [risk_coverage, auroc])
def test_scores_that_are_not_numbers_are_refused(curve: object) -> None:
    with pytest.raises(NumericalError, match="expected finite"):
        curve(torch.tensor([0.1, float("nan")]), torch.tensor([True, False]))  # type: ignore[operator]


def test_less_than_one_bin_or_point_is_refused() -> None:
    with pytest.raises(ConfigError, match="got n_bins = 0"):
        reliability(PROBS, LABELS, n_bins=0)
    with pytest.raises(ConfigError, match="got points = 0"):
        risk_coverage(CONFIDENCE, CORRECT, points=0)
