"""Attention in pieces: the numbers of the whole, and a checkpoint before each piece."""

import pytest
import torch

from blora.inference import attention
from blora.inference.attention import attend_in_pieces
from blora.inference.checkpoints import checkpoints
from tests.scenarios import tiny_model


@pytest.mark.parametrize("piece", [1, 200, 1000])
def test_pieces_give_what_the_whole_does(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.full((2, 1, 12, 12), torch.finfo(torch.float32).min).triu(1)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": torch.arange(12).expand(2, -1)}
    with torch.inference_mode():
        expected = model(**inputs, use_cache=False).logits
        attend_in_pieces(model)
        assert torch.equal(model(**inputs, use_cache=False).logits, expected)  # a short row stays whole
        monkeypatch.setattr(attention, "PIECE_SCORES", piece)
        seen: list[None] = []
        with checkpoints(lambda: seen.append(None)):
            found = model(**inputs, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert len(seen) >= 2


def test_without_a_mask_a_row_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        expected = model(ids).logits
        attend_in_pieces(model)
        monkeypatch.setattr(attention, "PIECE_SCORES", 1)
        assert torch.allclose(model(ids).logits, expected, atol=1e-5)
