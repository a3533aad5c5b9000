import math

import pytest
import torch
from torch import Tensor

from blora.decision.conformal import conformal_quantile, nonconformity, prediction_sets, proof_rows_needed
from blora.errors import ConfigError, ShapeError


def questions(n: int, seed: int, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    """Miscalibrated probabilities (n, 4) and labels that follow flatter ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return (sharpness * logits).softmax(-1), labels


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [19, 60])
def test_sets_hold_the_label_as_often_as_promised(coverage: float, n: int) -> None:
    n_sets, n_test = 400, 50
    held = torch.zeros(n_sets, dtype=torch.float64)
    sizes = torch.zeros(n_sets, dtype=torch.float64)
    for seed in range(n_sets):
        probs, labels = questions(n + n_test, seed)
        quantile = conformal_quantile(nonconformity(probs[:n], labels[:n]), coverage)
        sets = prediction_sets(probs[n:], quantile)
        held[seed] = sets.gather(1, labels[n:, None]).double().mean()
        sizes[seed] = sets.sum(1).double().mean()
    error = float(held.std()) / math.sqrt(n_sets)
    assert held.mean() >= coverage - 3 * error
    # Continuous scores cover at most 1 / (n + 1) more; the leader adds what is never empty.
    assert held.mean() <= coverage + 1 / (n + 1) + 0.02 + 3 * error
    assert 1 <= sizes.mean() < 4


def test_the_quantile_is_the_order_statistic_of_the_definition() -> None:
    scores = torch.arange(1, 20, dtype=torch.float64).flip(0) / 20  # 0.05 .. 0.95
    assert conformal_quantile(scores, 0.9) == pytest.approx(18 / 20)
    assert conformal_quantile(scores, 0.95) == pytest.approx(19 / 20)
    assert conformal_quantile(scores, 0.5) == pytest.approx(10 / 20)


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_fewer_rows_than_needed_are_refused(coverage: float, needed: int) -> None:
    assert proof_rows_needed(coverage) == needed
    assert conformal_quantile(torch.rand(needed, generator=torch.Generator()), coverage) >= 0
    with pytest.raises(ConfigError, match=f"got {needed - 1} rows .* {coverage}, expected at least {needed}: bring"):
        conformal_quantile(torch.rand(needed - 1, generator=torch.Generator()), coverage)


def test_a_set_is_never_empty_and_holds_what_is_probable_enough() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.2, 0.3, 0.5]])
    assert prediction_sets(probs, 0.1).tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    assert prediction_sets(probs, 0.7).tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    assert bool(prediction_sets(probs, 1.0).all())


def test_exactly_at_the_quantile_is_in_the_set() -> None:
    probs, labels = questions(50, seed=1)
    scores = nonconformity(probs, labels)
    quantile = conformal_quantile(scores, 0.9)
    at = int((scores == quantile).nonzero()[0, 0])
    assert prediction_sets(probs[at : at + 1].float(), quantile)[0, labels[at]]


def test_two_choices_and_certainty() -> None:
    probs = torch.tensor([[1.0, 0.0]] * 20)
    right, wrong = torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.long)
    assert prediction_sets(probs, conformal_quantile(nonconformity(probs, right), 0.9)).tolist() == [[True, False]] * 20
    assert prediction_sets(probs, conformal_quantile(nonconformity(probs, wrong), 0.9)).tolist() == [[True, True]] * 20


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \(B, C\) and \(B,\)"):
        nonconformity(torch.rand(3, 2), torch.zeros(4, dtype=torch.long))
