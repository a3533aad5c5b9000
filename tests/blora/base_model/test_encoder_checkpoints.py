"""Checkpoints of encoders: of which only the layers are read, whatever was trained on top of them."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from blora.base_model import load_base_model
from blora.errors import BaseModelError
from tests.blora.base_model.test_checkpoint import rewritten, saved_model
from tests.scenarios import VOCAB_SIZE

BERT = BertConfig(
    vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
)
DISTILBERT = DistilBertConfig(vocab_size=VOCAB_SIZE, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
TOKENS = torch.arange(3, 15)[None]


def models() -> dict[str, PreTrainedModel]:
    return {
        "sentence encoder": BertModel(BERT),
        "masked tokens": AutoModelForMaskedLM.from_config(BERT),
        "labels": AutoModelForSequenceClassification.from_config(BERT),
        "without a pooler": AutoModelForMaskedLM.from_config(DISTILBERT),
    }


@pytest.mark.parametrize("kind", models())
def test_the_layers_of_an_encoder_are_read_without_what_is_on_top(kind: str, tmp_path: Path) -> None:
    model = models()[kind].eval()
    base = load_base_model(str(saved_model(tmp_path / "encoder", model)), device="cpu", dtype="float32")
    assert base.is_encoder
    with torch.no_grad():
        expected = model.base_model(input_ids=TOKENS).last_hidden_state
        assert torch.equal(base.model(input_ids=TOKENS).last_hidden_state, expected)


def test_a_decoder_of_the_same_type_stays_a_language_model(tmp_path: Path) -> None:
    decoder: PreTrainedConfig = BertConfig.from_dict(BERT.to_dict() | {"is_decoder": True})
    path = saved_model(tmp_path / "decoder", BertLMHeadModel(decoder))
    assert not load_base_model(str(path), device="cpu", dtype="float32").is_encoder


def test_an_encoder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    path = saved_model(tmp_path / "encoder", BertModel(BERT))
    rewritten(path, lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(BaseModelError, match=r"1 weights are missing .* encoder.layer.1.output.dense.weight"):
        load_base_model(str(path), device="cpu", dtype="float32")
