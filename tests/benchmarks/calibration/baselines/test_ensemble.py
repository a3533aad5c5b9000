import pytest
import torch

from benchmarks.calibration.baselines.ensemble import ensemble
from blora.errors import ConfigError, ShapeError
from blora.training.evaluate import predict_all
from blora.training.rows.packed import LabelledRow
from tests.scenarios import injected, random_draws, random_rows

MODULES = {"layers.0.q": (4, 6), "layers.1.v": (2, 6)}


def test_members_are_the_draws_in_their_order() -> None:
    members = [random_draws(MODULES, n, seed=n) for n in (1, 1, 2)]
    draws = ensemble(members)
    assert draws.n_samples == 4
    assert draws.scaling == members[0].scaling
    for name, factors in draws.factors.items():
        assert factors.A.shape == (4, 3, 6)
        assert factors.B.shape == (4, MODULES[name][0], 3)
        torch.testing.assert_close(factors.A[1], members[1].factors[name].A[0], rtol=0, atol=0)
        torch.testing.assert_close(factors.B[2:], members[2].factors[name].B, rtol=0, atol=0)


def test_it_predicts_what_its_members_do() -> None:
    model, modules = injected()
    rows = [LabelledRow(row, 0) for row in random_rows(5)]
    members = [random_draws(modules, 1, seed=seed, scaling=0.5) for seed in range(3)]
    together = predict_all(model, rows, ensemble(members))
    alone = torch.cat([predict_all(model, rows, member) for member in members])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_members_must_match() -> None:
    one = random_draws(MODULES, 1)
    with pytest.raises(ConfigError, match="no members"):
        ensemble([])
    with pytest.raises(ConfigError, match="member 1 with other modules"):
        ensemble([one, random_draws({"layers.0.q": (4, 6)}, 1)])
    with pytest.raises(ConfigError, match="alpha / rank"):
        ensemble([one, random_draws(MODULES, 1, scaling=1.0)])
    with pytest.raises(ShapeError, match="same rank"):
        ensemble([one, random_draws(MODULES, 1, rank=2)])
