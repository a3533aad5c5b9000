"""Principal directions, against the singular value decomposition of the rows."""

import pytest
import torch
from torch import Tensor

from blora.posterior.noise import generator_of
from blora.training.head.principal import principal_directions


def rows_of(n_rows: int, n_columns: int, rank: int) -> Tensor:
    left, right = (torch.randn(size, rank, generator=generator_of(size)) for size in (n_rows, n_columns))
    rows = left @ right.T
    return rows - rows.mean(0)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)], ids=["tall", "wide"])
def test_directions_and_variances_are_those_of_the_singular_values(shape: tuple[int, int]) -> None:
    rows = rows_of(*shape, rank=9)
    directions, variances = principal_directions(rows, 4, 1000)
    _, singular, right = torch.linalg.svd(rows.double(), full_matrices=False)
    torch.testing.assert_close(variances, singular[:4].square() / len(rows), rtol=1e-5, atol=0)
    torch.testing.assert_close((directions @ right[:4].T).abs(), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)], ids=["tall", "wide"])
def test_rows_that_span_fewer_directions_have_fewer(shape: tuple[int, int]) -> None:
    directions, variances = principal_directions(rows_of(*shape, rank=3), 10, 1000)
    assert (directions.shape, variances.shape) == ((3, shape[1]), (3,))


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)], ids=["tall", "wide"])
def test_the_largest_entry_of_a_direction_is_positive(shape: tuple[int, int]) -> None:
    rows = rows_of(*shape, rank=9)
    directions, _ = principal_directions(rows, 9, 1000)
    assert torch.equal(directions.amax(1), directions.abs().amax(1))
    mirrored, _ = principal_directions(rows.flip(0), 9, 1000)
    torch.testing.assert_close(mirrored, directions, rtol=0, atol=1e-4)


@pytest.mark.parametrize("period", [2, 7, 10])
def test_of_many_rows_some_of_every_place_in_a_question_serve(period: int) -> None:
    rows = torch.zeros(2100, 600)
    rows[torch.arange(2100), torch.arange(2100) % period] = 1.0  # each place has a direction of its own
    directions, variances = principal_directions(rows, period, 500)
    assert len(directions) == period
    torch.testing.assert_close(variances, torch.full_like(variances, 1 / period), rtol=0.3, atol=0)


def test_the_rows_that_serve_are_always_the_same() -> None:
    rows = rows_of(60, 20, rank=9)
    first, second = (principal_directions(rows, 4, 15) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], principal_directions(rows, 4, 60)[1])


def test_where_one_side_is_short_all_rows_serve() -> None:
    rows = rows_of(60, 20, rank=9)
    some, whole = principal_directions(rows, 4, 20), principal_directions(rows, 4, 60)
    assert torch.equal(some[0], whole[0])
    assert torch.equal(some[1], whole[1])
