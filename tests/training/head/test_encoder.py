"""Heads on encoders: trained, saved and asked as any other, with fixed labels alone."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import normalize
from transformers import AutoModel

import blora
from blora.adapter import read_config
from blora.adapter.export import export_draws
from blora.adapter.opening import open_adapter
from blora.base_model import load_base_model
from blora.cli import main
from blora.errors import AdapterError
from blora.inference.reading import read_rows
from blora.training.head.train import default_head
from blora.vllm.states import check_readable
from tests.blora.base_model.test_checkpoint import saved_model
from tests.blora.inference.test_encoders import CONFIGS, plain_means, prompts
from tests.heads import prefer_loras
from tests.loras import make_lora
from tests.scenarios import random_model
from tests.training.head.test_fit import FAST, arguments, fixed
from tests.training.toys import toy_data, write_jsonl


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("encoder"), random_model(CONFIGS["bert"]))


def test_a_head_on_an_encoder_answers(encoder_folder: Path, tmp_path: Path) -> None:
    rows = fixed(toy_data(80))
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert main(arguments(encoder_folder, data, tmp_path / "toy")) == 0
    config = read_config(tmp_path / "toy")
    assert config.head is not None
    assert config.head.depths == (2, 3)  # two thirds of the layers, and all of them
    asked = [row["prompt"] for row in rows[:20]] + ["a text of quite another length"]
    model = blora.load(tmp_path / "toy", base_model=str(encoder_folder), device="cpu", dtype="float32")
    together, alone = model.predict(asked), [model.predict(text) for text in asked]
    for one, other in zip(together, alone, strict=True):
        found, expected = (torch.tensor([p.probability for p in each.probabilities]) for each in (one, other))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert one.familiarity == pytest.approx(other.familiarity, abs=0.12)  # a rank among eight, near a tie
    assert [one.top_choice for one in together[:20]] == [row["label"] for row in rows[:20]]
    with pytest.raises(AdapterError, match="on a base model that generates, train it with --head none"):
        export_draws(model.adapter, model.base, tmp_path / "draws")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for the old name
def test_a_lora_below_it_is_one_that_peft_reads(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer_loras(monkeypatch)
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    given = arguments(encoder_folder, data, tmp_path / "toy", "--layers", "last:2", *FAST)
    assert main(given) == 0
    base, adapter = open_adapter(tmp_path / "toy", base_model=str(encoder_folder), device="cpu", dtype="float32")
    assert adapter.config.head is not None
    assert adapter.config.modules
    peft = PeftModel.from_pretrained(AutoModel.from_pretrained(encoder_folder), str(tmp_path / "toy")).eval()
    [row] = prompts(9)
    head = adapter.config.head
    found = read_rows(base.model, [row], head, adapter.posterior.mean().lora).states[0]
    with torch.no_grad():
        states = peft(input_ids=torch.tensor([row.prompt]), output_hidden_states=True)
    expected = torch.cat([normalize(states.hidden_states[depth][0].mean(0), dim=0) for depth in head.depths])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (
        expected[-32:] - plain_means(AutoModel.from_pretrained(encoder_folder).eval(), row)[-32:]
    ).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("head", "choices"), [("none", False), ("pointer", False), ("auto", True)], ids=["no head", "pointer", "choices"]
)
def test_what_an_encoder_cannot_answer_is_refused_before_any_training(
    head: str, choices: bool, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = toy_data(60)
    data = write_jsonl(tmp_path / "rows.jsonl", rows if choices else fixed(rows))
    assert main(arguments(encoder_folder, data, tmp_path / "toy", "--head", head)) == 1
    said = capsys.readouterr().err
    assert "an encoder, which scores no choices, expected a linear head" in said
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_default_depths_of_encoders_of_any_number_of_layers() -> None:
    found = [default_head(n, 8, linear=True, encoder=True).depths for n in (1, 2, 3, 12, 24)]
    assert found == [(1,), (1, 2), (2, 3), (8, 12), (16, 24)]


def test_an_adapter_of_an_encoder_is_refused_through_vllm(encoder_folder: Path) -> None:
    base = load_base_model(str(encoder_folder), device="cpu", dtype="float32")
    with pytest.raises(AdapterError, match="an encoder, expected one of a language model"):
        check_readable("toy", default_head(3, 32, linear=True, encoder=True), base)


def test_a_lora_on_an_encoder_is_not_made_bayesian(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", toy_data(20))
    lora = make_lora(tmp_path / "lora")
    given = ("--base-model", str(encoder_folder), "--device", "cpu", "--data", str(data))
    assert main(["bayesianize", str(lora), *given, "--output", str(tmp_path / "toy")]) == 1
    assert "an encoder, expected a language model, by whose scores" in capsys.readouterr().err
