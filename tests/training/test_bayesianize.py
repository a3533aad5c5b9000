"""A posterior around LoRAs that PEFT itself made."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blora.adapter import load_adapter, read_config
from blora.base_model import load_base_model
from blora.cli import main
from blora.config import PosteriorConfig
from blora.errors import ConfigError
from blora.lora import read_lora
from blora.training.bayesianize import posterior_around
from tests.loras import make_lora
from tests.training.toys import train_arguments, write_jsonl


@pytest.mark.parametrize("rank", [3, 12])
def test_the_mean_is_the_lora(tmp_path: Path, rank: int) -> None:
    lora = make_lora(tmp_path / "lora", rank=rank)
    posterior = posterior_around(lora, PosteriorConfig(), seed=0)
    wanted = read_lora(lora, posterior.modules_shape, rank, 2.0 * rank)
    for name, factors in posterior.mean().factors.items():
        update = wanted[name].B @ wanted[name].A
        torch.testing.assert_close(factors.B @ factors.A, update, rtol=1e-3, atol=1e-4)


def test_an_untrained_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="update is zero"):
        posterior_around(make_lora(tmp_path / "lora", zero=True), PosteriorConfig(), seed=0)


def test_the_command_writes_an_adapter_that_loads(
    base_folder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, output = make_lora(tmp_path / "lora"), tmp_path / "adapter"
    code = main(
        [
            *("bayesianize", str(lora), "--data", str(toy_file), "--output", str(output), "--n-samples", "4"),
            *("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32", "--scales", "0.25,0.5"),
        ]
    )
    assert code == 0
    out = capsys.readouterr().out
    assert "the LoRA itself" in out
    assert "<- chosen" in out
    base = load_base_model(str(base_folder), device="cpu", dtype="float32")
    adapter = load_adapter(output, base)
    assert adapter.config.sampling.n_samples == 4
    tuning = adapter.config.training["tuning"]
    assert [trial["scale"] for trial in tuning["trials"]][:2] == [0.0, 0.25]
    assert tuning["scale"] in (0.25, 0.5)
    assert adapter.config.prompt.template == "Question: {prompt}\nAnswer:"
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 3


def test_the_choices_of_a_lora_that_was_trained_here_are_kept(base_folder: Path, tmp_path: Path) -> None:
    def labelled(start: int, labels: Sequence[str]) -> Path:
        rows = [{"prompt": f"text {start + i}", "label": labels[i % len(labels)]} for i in range(40)]
        return write_jsonl(tmp_path / f"{start}.jsonl", rows)

    three, two = labelled(100, ("a", "b", "c")), labelled(200, ("a", "b"))
    plain = (
        "--method",
        "lora",
        "--lora-learning-rate",
        "0.05",
        "--epochs",
        "1",
        "--template",
        "Text: {prompt}\nLabel:",
    )
    assert main(["train", *train_arguments(base_folder, three, tmp_path / "lora", *plain)]) == 0
    model = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32", "--scales", "0.5")
    command = ["bayesianize", str(tmp_path / "lora"), "--data", str(two), *model]
    assert main([*command, "--output", str(tmp_path / "wide")]) == 0
    prompt = read_config(tmp_path / "wide").prompt
    assert (prompt.choices, prompt.template) == (("a", "b", "c"), "Text: {prompt}\nLabel:")


def test_an_adapter_with_a_posterior_is_not_made_bayesian_again(
    base_folder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "toy"
    assert main(["train", *train_arguments(base_folder, toy_file, adapter, "--epochs", "1")]) == 0
    command = ["bayesianize", str(adapter), "--data", str(toy_file), "--base-model", str(base_folder)]
    assert main([*command, "--output", str(tmp_path / "again")]) == 1
    assert "an adapter that has a posterior already, expected a plain LoRA" in capsys.readouterr().err


def test_a_lora_of_another_model_is_refused(
    base_folder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = make_lora(tmp_path / "lora")
    weights = lora / "adapter_model.safetensors"
    deeper = {name.replace("layers.1", "layers.9"): tensor for name, tensor in load_file(weights).items()}
    save_file(deeper, weights)
    arguments = ["--data", str(toy_file), "--output", str(tmp_path / "adapter"), "--base-model", str(base_folder)]
    assert main(["bayesianize", str(lora), *arguments, "--device", "cpu", "--dtype", "float32"]) != 0
    assert "give the base model it was trained on" in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()
