"""Forward passes that can be interrupted: the numbers of whole ones, and checkpoints on the way."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV32Config

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


def test_a_model_that_asks_for_its_kind_of_attention_gives_what_it_gave() -> None:
    config = DeepseekV32Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=2,
        index_topk=4,
        index_n_heads=2,
        index_head_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(24)[None]  # more than the four keys that a query attends to
    with torch.inference_mode():
        expected = model(ids).logits
        make_interruptible(model)
        assert torch.equal(model(ids).logits, expected)
