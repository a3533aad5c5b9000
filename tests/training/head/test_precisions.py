"""The search for prior precisions goes on beyond its grid where an end of the grid is best."""

import pytest

from blora.config import HeadConfig
from blora.decision.temperature import FEW_ROWS
from blora.posterior.draws import NO_LORA
from blora.training.head import fit
from blora.training.head.fit import FittedHead, Regression, fit_head
from tests.training.head.test_fit import CONFIG, fit_pointer, linear_task, pointer_task

LOW, HIGH = (0.001, 0.003, 0.01), (1e5, 3e5, 1e6)


def fitted(
    monkeypatch: pytest.MonkeyPatch, grid: tuple[float, ...], n_rows: int, most: int, n_validation: int = 400
) -> FittedHead:
    """Fit a head to states on a grid of precisions, which at most so many further ones continue."""
    monkeypatch.setattr(fit, "STATE_PRECISIONS", grid)
    monkeypatch.setattr(fit, "MOST_BEYOND", most)
    (train, rows), (validation, held_out) = linear_task(n_rows, 1), linear_task(n_validation, 2)
    return fit_head(Regression.of(CONFIG, train, rows), validation, held_out, NO_LORA, "states")


@pytest.mark.parametrize(
    ("grid", "n_rows", "end", "factor"), [(LOW, 12, LOW[-1], fit.BEYOND), (HIGH, 2000, HIGH[0], 1 / fit.BEYOND)]
)
def test_a_grid_continues_beyond_an_end_that_is_best(
    monkeypatch: pytest.MonkeyPatch, grid: tuple[float, ...], n_rows: int, end: float, factor: float
) -> None:
    alone, twice, further = (fitted(monkeypatch, grid, n_rows, most) for most in (0, 2, 8))
    assert alone.precisions[0] == end
    assert twice.precisions[0] == pytest.approx(end * factor**2)
    assert further.trial.metrics.nll < twice.trial.metrics.nll < alone.trial.metrics.nll


def test_a_grid_whose_best_is_inside_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    best = fitted(monkeypatch, HIGH, 2000, 20).precisions[0]
    found = fitted(monkeypatch, (best / 9, best, best * 9), 2000, 4)
    assert found.precisions[0] == best


def test_few_validation_rows_choose_within_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(monkeypatch, HIGH, 2000, 4, n_validation=FEW_ROWS - 1).precisions[0] == HIGH[0]
    assert fitted(monkeypatch, HIGH, 2000, 4, n_validation=FEW_ROWS).precisions[0] < HIGH[0]


def test_the_scores_of_a_pointer_head_keep_their_precision() -> None:
    config = HeadConfig(depths=(1,), n_states=5, n_directions=5)
    for part in ("counts", "both"):
        assert fit_pointer(config, pointer_task(100, 1), pointer_task(FEW_ROWS, 2), part).precisions[1] == 1.0
