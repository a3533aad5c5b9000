"""Forward passes that can be interrupted: the numbers of whole ones, and checkpoints on the way."""

import pytest
import torch

from blora.inference import interruptible
from blora.inference.checkpoints import checkpoints
from blora.inference.interruptible import make_interruptible
from tests.scenarios import tiny_model


class StoppedError(Exception):
    pass


def stop() -> None:
    raise StoppedError


@pytest.mark.parametrize("piece", [1, 200, 1000])
def test_pieces_give_what_the_whole_does(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.full((2, 1, 12, 12), torch.finfo(torch.float32).min).triu(1)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(12).expand(2, -1)}
    with torch.inference_mode():
        expected = model(**inputs, use_cache=False).logits
        make_interruptible(model)
        seen: list[None] = []
        with checkpoints(lambda: seen.append(None)):
            assert torch.equal(model(**inputs, use_cache=False).logits, expected)  # a short row stays whole
            n_whole = len(seen)
            monkeypatch.setattr(interruptible, "PIECE_SCORES", piece)
            found = model(**inputs, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert len(seen) >= 2 * n_whole + 2


def test_without_a_mask_a_row_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        expected = model(ids).logits
        make_interruptible(model)
        monkeypatch.setattr(interruptible, "PIECE_SCORES", 1)
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)


def test_a_forward_pass_meets_them_in_every_layer_and_can_be_left_there() -> None:
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        expected = model(ids).logits
        make_interruptible(model)
        seen: list[None] = []
        with checkpoints(lambda: seen.append(None)):
            assert torch.equal(model(ids).logits, expected)
        assert len(seen) >= 2 * len(model.get_decoder().layers)
        with pytest.raises(StoppedError), checkpoints(stop):
            model(ids)
        assert torch.equal(model(ids).logits, expected)
