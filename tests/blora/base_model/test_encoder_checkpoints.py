"""Checkpoints of encoders: of which only the layers are read, whatever was trained on top of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from blora.base_model import load_base_model, reading_digest
from blora.errors import BaseModelError
from tests.blora.adapters import rewrite_json
from tests.blora.base_model.test_checkpoint import rewritten, saved_model
from tests.scenarios import VOCAB_SIZE, tiny_tokenizer

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


def test_positions_that_transformers_no_longer_computes_are_refused(tmp_path: Path) -> None:
    path = saved_model(tmp_path / "encoder", BertModel(BERT))
    rewrite_json(lambda raw: raw.update(position_embedding_type="relative_key"))(path / "config.json")
    with pytest.raises(BaseModelError, match="positions 'relative_key', which transformers no longer computes"):
        load_base_model(str(path), device="cpu", dtype="float32")


def test_loading_says_nothing_of_weights_that_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    load_base_model(str(saved_model(tmp_path / "encoder", models()["labels"])), device="cpu", dtype="float32")
    said = caplog.text + capfd.readouterr().err
    assert "REPORT" not in said
    assert "sharded" not in said


DEBERTA = DebertaV2Config(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=48,
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
)
ROBERTA = RobertaConfig(
    vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
)


@pytest.mark.parametrize(
    ("config", "change"),
    [(DEBERTA, {"pos_att_type": ["c2p"]}), (ROBERTA, {"pad_token_id": 0})],
    ids=["kinds of attention", "first position"],
)
def test_encoders_that_read_positions_otherwise_have_other_digests(
    config: PreTrainedConfig, change: dict[str, Any]
) -> None:
    other = type(config).from_dict(config.to_dict() | change)
    first, second = (reading_digest(AutoModel.from_config(one), tiny_tokenizer()) for one in (config, other))
    assert first != second
