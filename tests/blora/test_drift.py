"""The index against its definition, and how it behaves when questions change and when they do not."""

import math

import pytest
import torch

from blora.decision.drift import LEAST, WINDOW, DriftWindow, population_stability_index
from blora.decision.histogram import Histogram, entropy_edges, entropy_histogram

N_CHOICES = 4


def entropies(n: int, *, sharpness: float, seed: int) -> torch.Tensor:
    """Of predictions that are the surer the larger `sharpness` is, in nats."""
    generator = torch.Generator().manual_seed(seed)
    probs = (sharpness * torch.randn(n, N_CHOICES, generator=generator)).softmax(-1)
    return -(probs * probs.log()).sum(-1)


def calibrated(n: int = 256) -> DriftWindow:
    return DriftWindow(entropy_histogram(entropies(n, sharpness=2.0, seed=0), N_CHOICES))


def test_equal_shares_are_no_shift_and_unequal_ones_are_the_same_in_both_directions() -> None:
    assert population_stability_index((10, 20, 30), (10, 20, 30)) == 0
    there = population_stability_index((10, 20, 70), (70, 20, 10))
    assert there == pytest.approx(population_stability_index((70, 20, 10), (10, 20, 70)))
    e, o = 10.5 / 101.5, 70.5 / 101.5
    assert there == pytest.approx(2 * (o - e) * math.log(o / e))


def test_an_empty_bin_is_finite() -> None:
    assert 1 < population_stability_index((100, 0), (0, 100)) < 100


def test_there_is_no_index_before_there_is_evidence() -> None:
    window = calibrated()
    for value in entropies(LEAST - 1, sharpness=2.0, seed=1).tolist():
        window.add(value)
    assert window.index() is None
    window.add(0.5)
    assert window.index() is not None


def test_twenty_thousand_answers_of_the_same_kind_raise_no_alarm() -> None:
    window, highest = calibrated(), 0.0
    for k, value in enumerate(entropies(20_000, sharpness=2.0, seed=2).tolist()):
        window.add(value)
        if k % 50 == 0:
            highest = max(highest, window.index() or 0.0)
    assert highest < 0.25


@pytest.mark.parametrize("sharpness", [0.5, 6.0])
def test_answers_of_another_kind_raise_it_within_a_window(sharpness: float) -> None:
    window = calibrated()
    for value in entropies(WINDOW, sharpness=2.0, seed=3).tolist():
        window.add(value)
    assert (window.index() or 0.0) < 0.1
    alarms = []
    for k, value in enumerate(entropies(WINDOW, sharpness=sharpness, seed=4).tolist()):
        window.add(value)
        if k % 20 == 0 and (window.index() or 0.0) > 0.25:
            alarms.append(k)
    assert alarms
    assert alarms[0] <= 500


def test_a_calibration_that_knows_one_entropy_alone_still_compares() -> None:
    counts = (100,) + (0,) * 19
    window = DriftWindow(Histogram(edges=entropy_edges(2), counts=counts))
    for _ in range(LEAST):
        window.add(0.0)
    assert (window.index() or 0.0) < 0.01
    for _ in range(LEAST):
        window.add(0.6)
    assert (window.index() or 0.0) > 0.25


def test_a_shift_below_all_that_was_expected_shows_too() -> None:
    window = DriftWindow(Histogram(edges=entropy_edges(2), counts=(0,) * 10 + (100,) + (0,) * 9))
    for _ in range(LEAST):
        window.add(0.0)
    assert (window.index() or 0.0) > 0.25
