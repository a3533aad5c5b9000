from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blora.training.lora.sampler import GROUP_BATCHES, LengthGroupedOrder


def order_of(lengths: list[int], batch_size: int, *, seed: int = 0, epoch: int = 0) -> list[int]:
    order = LengthGroupedOrder(lengths, batch_size, seed)
    order.set_epoch(epoch)
    return list(order)


def random_lengths(n_rows: int, seed: int = 0) -> list[int]:
    return torch.randint(5, 400, (n_rows,), generator=torch.Generator().manual_seed(seed)).tolist()


def batches(order: list[int], batch_size: int) -> list[list[int]]:
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 100),
)
def test_every_row_comes_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    assert sorted(order_of(lengths, batch_size, seed=seed, epoch=epoch)) == list(range(len(lengths)))


def test_the_length_is_the_number_of_rows() -> None:
    assert len(LengthGroupedOrder([3, 1, 2], 2, 0)) == 3


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = random_lengths(100)
    first = order_of(lengths, 8, seed=1, epoch=2)
    torch.manual_seed(99)
    sampler = LengthGroupedOrder(lengths, 8, 1)
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        went_through_others = list(sampler)
    assert went_through_others == first
    assert order_of(lengths, 8, seed=1, epoch=3) != first
    assert order_of(lengths, 8, seed=2, epoch=2) != first


def test_no_global_random_number_is_drawn() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    order_of(random_lengths(50), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_epochs_do_not_share_orders() -> None:
    lengths = random_lengths(60)
    orders = {tuple(order_of(lengths, 4, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("other", [{"seed": 4096}, {"seed": 2**32}])
def test_distant_seeds_are_other_seeds(other: dict[str, int]) -> None:
    lengths = random_lengths(60)
    assert order_of(lengths, 4, **other) != order_of(lengths, 4)


@pytest.mark.parametrize("n_rows", [1, 7, 9, 8 * GROUP_BATCHES + 3, 8 * GROUP_BATCHES * 2 + 1])
def test_the_short_batch_comes_last(n_rows: int) -> None:
    lengths = random_lengths(n_rows)
    for epoch in range(10):
        split = batches(order_of(lengths, 8, epoch=epoch), 8)
        assert all(len(batch) == 8 for batch in split[:-1])
        # Each batch is a run of its sorted group, so a shift by the short one would show.
        assert all(batch == sorted(batch, key=lengths.__getitem__) for batch in split)


def test_a_batch_holds_rows_of_similar_length() -> None:
    lengths = random_lengths(1000)

    def padding(order: list[int]) -> int:
        return sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches(order, 8))

    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    assert padding(order_of(lengths, 8)) < 0.15 * padding(shuffled)


def test_batches_do_not_come_sorted_by_length() -> None:
    lengths = random_lengths(1000)
    firsts = [lengths[batch[0]] for batch in batches(order_of(lengths, 8), 8)]
    rises = sum(later > earlier for earlier, later in pairwise(firsts))
    assert 0.35 < rises / len(firsts) < 0.65


def test_membership_of_batches_changes_between_epochs() -> None:
    lengths = random_lengths(200)
    epochs = [{frozenset(batch) for batch in batches(order_of(lengths, 8, epoch=epoch), 8)} for epoch in (0, 1)]
    assert len(epochs[0] & epochs[1]) < 3
