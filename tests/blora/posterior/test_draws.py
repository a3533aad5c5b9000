import asyncio
import threading

import pytest
import torch
from torch import Tensor

from blora.errors import ShapeError
from blora.posterior.draws import Draws, Factors, active_draws, use_draws
from tests.scenarios import random_draws

MODULES = {"layers.0.q_proj": (6, 5), "layers.1.q_proj": (4, 5)}


def tensors(draws: Draws) -> list[Tensor]:
    return [tensor for f in draws.factors.values() for tensor in (f.A, f.B)]


def test_draws_are_immutable() -> None:
    draws = random_draws(MODULES, 2)
    with pytest.raises(AttributeError, match="cannot assign to field 'scaling'"):
        draws.scaling = 3.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not support item assignment"):
        draws.factors["other"] = draws.factors["layers.0.q_proj"]  # type: ignore[index]
    with pytest.raises(AttributeError, match="cannot assign to field 'A'"):
        draws.factors["layers.0.q_proj"].A = torch.zeros(1)  # type: ignore[misc]


def test_draws_do_not_follow_the_mapping_they_were_made_from() -> None:
    source = {"a": Factors(torch.zeros(2, 1, 3), torch.zeros(2, 4, 1))}
    draws = Draws(source, 1.0, 2)
    source.clear()
    assert list(draws.factors) == ["a"]


def test_the_number_of_draws_is_that_of_the_factors() -> None:
    assert random_draws(MODULES, 7).n_samples == 7


def test_first_draws_are_the_same_ones_and_share_their_memory() -> None:
    draws = random_draws(MODULES, 4, scaling=0.5)
    first = draws.first(2)
    assert first.n_samples == 2
    assert first.scaling == 0.5
    for a, b in zip(tensors(first), tensors(draws), strict=True):
        assert torch.equal(a, b[:2])
        assert a.data_ptr() == b.data_ptr()


def test_a_part_is_the_draws_from_start_to_stop_and_shares_their_memory() -> None:
    draws = random_draws(MODULES, 5, scaling=0.5)
    part = draws.part(1, 4)
    assert part.n_samples == 3
    assert part.scaling == 0.5
    for a, b in zip(tensors(part), tensors(draws), strict=True):
        assert torch.equal(a, b[1:4])
        assert a.data_ptr() == b[1:].data_ptr()


def test_moving_to_a_device_keeps_every_number() -> None:
    draws = random_draws(MODULES, 2, scaling=0.5)
    moved = draws.to(torch.device("cpu"))
    assert moved.scaling == 0.5
    assert all(torch.equal(a, b) for a, b in zip(tensors(moved), tensors(draws), strict=True))


def test_moving_to_a_device_keeps_the_draw_of_each_row() -> None:
    rows = torch.tensor([1, 0, 1])
    moved = random_draws(MODULES, 2).for_rows(rows).to(torch.device("meta"))
    assert moved.rows is not None
    assert (moved.rows.device.type, moved.rows.shape) == ("meta", (3,))
    kept = random_draws(MODULES, 2).for_rows(rows).to(torch.device("cpu")).rows
    assert kept is not None
    assert torch.equal(kept, rows)


def test_draws_bound_to_rows_have_no_parts() -> None:
    draws = random_draws(MODULES, 4).for_rows(torch.tensor([3, 0]))
    with pytest.raises(
        ShapeError, match="got a part of draws that are bound to 2 rows, expected .* take the part first"
    ):
        draws.part(0, 2)
    with pytest.raises(ShapeError, match="bound to 2 rows"):
        draws.first(1)


def test_no_draws_are_active_outside_a_block() -> None:
    assert active_draws() is None
    with use_draws(random_draws(MODULES, 1)):
        pass
    assert active_draws() is None


def test_blocks_nest_and_none_hides_the_outer_draws() -> None:
    outer, inner = random_draws(MODULES, 1), random_draws(MODULES, 2)
    with use_draws(outer):
        with use_draws(inner):
            assert active_draws() is inner
        with use_draws(None):
            assert active_draws() is None
        assert active_draws() is outer


def test_an_error_inside_a_block_ends_it() -> None:
    with pytest.raises(RuntimeError, match="broken"), use_draws(random_draws(MODULES, 1)):
        raise RuntimeError("broken")
    assert active_draws() is None


def test_another_thread_does_not_see_the_draws() -> None:
    seen: list[Draws | None] = []
    with use_draws(random_draws(MODULES, 1)):
        thread = threading.Thread(target=lambda: seen.append(active_draws()))
        thread.start()
        thread.join()
    assert seen == [None]


async def test_interleaved_tasks_each_see_their_own_draws() -> None:
    async def work(draws: Draws) -> bool:
        with use_draws(draws):
            for _ in range(20):
                await asyncio.sleep(0)
                if active_draws() is not draws:
                    return False
        return active_draws() is None

    assert all(await asyncio.gather(*(work(random_draws(MODULES, s)) for s in (1, 2, 3))))
