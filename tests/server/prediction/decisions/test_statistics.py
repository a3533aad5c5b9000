"""Statistics of the protocols, against their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.server.prediction.decisions.statistics import concentration, expected_level, level_confidence

DISTRIBUTIONS = st.lists(st.floats(1e-6, 1), min_size=2, max_size=255).map(
    lambda weights: [weight / sum(weights) for weight in weights]
)


@given(DISTRIBUTIONS)
def test_they_keep_to_their_ranges(probs: list[float]) -> None:
    assert 0 <= concentration(probs) <= 1
    assert 0 <= level_confidence(probs) <= 1
    assert 0 <= expected_level(probs) <= len(probs) - 1 + 1e-9


@pytest.mark.parametrize("n", [2, 3, 10, 255])
def test_equal_probabilities_have_no_confidence_and_certainty_has_all(n: int) -> None:
    uniform, sure = [1 / n] * n, [0.0] * (n - 1) + [1.0]
    assert concentration(uniform) == pytest.approx(0, abs=1e-12)
    assert level_confidence(uniform) == pytest.approx(0, abs=1e-12)
    assert (concentration(sure), level_confidence(sure)) == (pytest.approx(1), 1)
    assert expected_level(sure) == n - 1
    assert expected_level(uniform) == pytest.approx((n - 1) / 2)


def test_levels_next_to_the_leading_one_cost_less_than_those_far_away() -> None:
    near, far = [0.6, 0.4, 0.0, 0.0], [0.6, 0.0, 0.0, 0.4]
    assert concentration(near) == concentration(far)
    # Distances 0.4 and 1.2 from the first level, against (0 + 1 + 2 + 3) / 4 of equal probabilities.
    assert level_confidence(near) == pytest.approx(1 - 0.4 / 1.5)
    assert level_confidence(far) == pytest.approx(1 - 1.2 / 1.5)
