"""Batches of rows of similar length."""

from itertools import combinations, pairwise

from blora.inference.batches import by_length, padded_tokens
from blora.inference.packing import PackedRow


def row(prompt: int, rest: int = 1) -> PackedRow:
    """Return a row with this many tokens of prompt and of one scored choice."""
    return PackedRow((1,) * prompt, ((2,) * rest, (3,)), "none")


def test_batches_are_within_the_limit_and_leave_no_room_for_the_next_row() -> None:
    rows = [row(3 + 7 * i % 11, 1 + 5 * i % 4) for i in range(40)]
    batches = list(by_length(rows, 60))

    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    assert all(padded_tokens([rows[i] for i in batch]) <= 60 for batch in batches)
    assert all(padded_tokens([rows[i] for i in [*batch, after[0]]]) > 60 for batch, after in pairwise(batches))
    assert all(rows[i].n_tokens >= rows[j].n_tokens for batch in batches for i, j in combinations(batch, 2))


def test_a_row_above_the_limit_is_a_batch_of_its_own() -> None:
    assert list(by_length([row(3), row(30), row(3)], 10)) == [[1], [2, 0]]


def test_cached_tokens_count_a_quarter() -> None:
    rows = [row(8).after(4), row(8).after(4)]
    assert padded_tokens(rows) == 2 * (rows[0].n_tokens + 1)
    assert list(by_length(rows, padded_tokens(rows))) == [[1, 0]]
    assert list(by_length(rows, padded_tokens(rows) - 1)) == [[1], [0]]
