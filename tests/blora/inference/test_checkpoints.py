"""Checkpoints: nothing where nobody has bound any, and what they raise ends the computation."""

from blora.inference.checkpoints import between, checkpoint, checkpoints


def test_without_a_function_they_do_nothing() -> None:
    checkpoint()
    assert list(between(range(3))) == [0, 1, 2]


def test_one_comes_before_each_part() -> None:
    seen: list[str] = []
    with checkpoints(lambda: seen.append("look")):
        for part in between("ab"):
            seen.append(part)
    checkpoint()
    assert seen == ["look", "a", "look", "b"]
