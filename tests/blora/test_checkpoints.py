"""Checkpoints: nothing where nobody has bound any, and what they raise ends the computation."""

import pytest
import torch

from blora.inference.checkpoints import between, check_within, checkpoint, checkpoints
from tests.scenarios import tiny_model


class StoppedError(Exception):
    pass


def stop() -> None:
    raise StoppedError


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


def test_a_forward_pass_meets_them_in_every_layer_and_can_be_left_there() -> None:
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        expected = model(ids).logits
        check_within(model)
        seen: list[None] = []
        with checkpoints(lambda: seen.append(None)):
            assert torch.equal(model(ids).logits, expected)
        assert len(seen) >= 2 * len(model.get_decoder().layers)
        with pytest.raises(StoppedError), checkpoints(stop):
            model(ids)
        assert torch.equal(model(ids).logits, expected)
