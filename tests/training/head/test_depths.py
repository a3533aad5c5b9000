"""The depths of the states that a head reads, by `blora train --depths`."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LongcatFlashConfig, PreTrainedConfig

import blora
from blora.adapter import read_config
from blora.cli import main
from blora.errors import ConfigError
from blora.training.head.train import parse_depths
from tests.scenarios import CONFIGS, VOCAB_SIZE, tiny_model, tiny_tokenizer
from tests.training.head.test_fit import FAST, arguments, fixed
from tests.training.toys import CHOICES, toy_data, write_jsonl


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_a_head_and_its_familiarity_read_the_depths_that_are_asked_for(
    readout: str, base_folder: Path, tmp_path: Path
) -> None:
    rows = toy_data(60)
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(rows) if readout == "linear" else rows)
    assert main(arguments(base_folder, data, tmp_path / "toy", "--depths", "last")) == 0
    config = read_config(tmp_path / "toy")
    assert config.head is not None
    assert config.familiarity is not None
    assert config.head.depths == config.familiarity.depths == (2,)


@pytest.mark.parametrize("layers", ["last:1", "all"])
def test_layers_of_a_lora_above_all_that_a_linear_head_reads_are_refused(
    layers: str, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(base_folder, data, tmp_path / "toy", "--depths", "0,1", "--layers", layers, *FAST)) != 0
    assert "got --layers up to 1 with --depths up to 1, expected layers below 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


# Gemma 3n's layers pass on four states a token.
SEVERAL_STATES = "gemma3n_text"
# Layers that hold two attentions: the settings count four where there are two layers.
TWO_ATTENTIONS = LongcatFlashConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    ffn_hidden_size=48,
    q_lora_rank=8,
    kv_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    n_routed_experts=4,
    zero_expert_num=2,
    moe_topk=2,
    expert_ffn_hidden_size=16,
)


@pytest.mark.parametrize(
    ("config", "depths"),
    [(TWO_ATTENTIONS, (1, 2)), (CONFIGS[SEVERAL_STATES], (2,))],
    ids=["two-attentions", "several-states"],
)
def test_a_head_reads_the_depths_that_the_model_has(
    config: PreTrainedConfig, depths: tuple[int, ...], tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(tmp_path / "base", data, tmp_path / "toy")) == 0
    head = read_config(tmp_path / "toy").head
    assert head is not None
    assert head.depths == depths
    model = blora.load(tmp_path / "toy", base_model=str(tmp_path / "base"), dtype="float32")
    assert model.predict("red 01").top_choice in CHOICES


def test_a_depth_of_several_states_a_token_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(SEVERAL_STATES).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(tmp_path / "base", data, tmp_path / "toy", "--depths", "0,1,2")) != 0
    said = "which has several states a token at depths [0, 1], expected one: train the head with --depths last"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["", "first", "-1", "1,", "1, 2", "0.5", "31", "2,99"])
def test_other_depths_are_refused(spec: str) -> None:
    assert parse_depths("2,0,2", 30) == (0, 2)
    with pytest.raises(ConfigError, match=f"got depths {spec!r}.*, expected"):
        parse_depths(spec, 30)
