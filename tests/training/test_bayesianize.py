"""A posterior around LoRAs that PEFT itself made."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blora.adapter import load_adapter, read_config
from blora.adapter.lora import read_lora, tensor_name
from blora.base_model import load_base_model
from blora.cli import main
from blora.config import PosteriorConfig
from blora.errors import ConfigError
from blora.training import bayesianize
from blora.training.bayesianize import posterior_around
from blora.training.rows.examples import examples_for
from blora.training.rows.overlap import SEEN, fingerprints
from tests.blora.adapters import rewrite_json
from tests.loras import make_lora
from tests.scenarios import VOCAB_SIZE
from tests.training.toys import train_arguments, write_jsonl

CPU = ("--device", "cpu", "--dtype", "float32", "--scales", "0.5")
URGENT = {"type": "predicate", "name": "urgent", "instructions": "Must somebody act today?"}
QUEUE = {"type": "choice", "name": "queue", "choices": [{"value": "bug"}, {"value": "bill"}], "label": "bug"}


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


def test_a_posterior_that_is_worse_than_the_lora_beyond_the_tolerance_is_told(
    base_folder: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    search = bayesianize.tune

    def worse(*args: Any, **settings: Any) -> Any:
        chosen, trials = search(*args, **settings)
        return replace(chosen, metrics=replace(chosen.metrics, nll=chosen.metrics.nll + 1)), trials

    command = ["bayesianize", str(make_lora(tmp_path / "lora")), "--data", str(toy_file), "--n-samples", "4"]
    command += ["--base-model", str(base_folder), *CPU, "--tolerance", "0.5"]
    for name, found in (("as it is", search), ("worse", worse)):
        caplog.clear()
        monkeypatch.setattr(bayesianize, "tune", found)
        with caplog.at_level(logging.WARNING, "blora.training.bayesianize"):
            assert main([*command, "--output", str(tmp_path / name)]) == 0
        told = [record.getMessage() for record in caplog.records if record.name == "blora.training.bayesianize"]
        assert ["try --scales below 0.5" in message for message in told] == [True] * (name == "worse")


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


def plain(start: int) -> list[Mapping[str, Any]]:
    """Plain rows of a predicate."""
    return [{"prompt": f"App {start + i} down", "label": i % 2 == 0} for i in range(20)]


def requests(start: int) -> list[Mapping[str, Any]]:
    """Requests with the same predicate and a second question."""
    return [{"input": row["prompt"], "questions": [URGENT | {"label": row["label"]}, QUEUE]} for row in plain(start)]


@pytest.fixture(scope="module")
def urgent(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain LoRA from `blora train` that answers one question and has a policy and settings of its own."""
    folder = tmp_path_factory.mktemp("urgent")
    (folder / "question.json").write_text(json.dumps(URGENT))
    settings = [
        *("--method", "lora", "--lora-learning-rate", "0.05", "--epochs", "1", "--min-confidence", "0.6"),
        *("--question", str(folder / "question.json"), "--template", "Text: {prompt}\nUrgent:", "--bank-seed", "7"),
        *("--scoring", "label", "--normalization", "none", "--choice-end", "eos", "--stop-error", "0.1"),
    ]
    rows = write_jsonl(folder / "rows.jsonl", requests(100))
    assert main(["train", *train_arguments(base_folder, rows, folder / "lora", *settings)]) == 0
    return folder / "lora"


@pytest.mark.parametrize("rows", [plain(200), requests(200)], ids=["plain", "requests"])
def test_a_lora_that_was_trained_here_keeps_its_settings(
    urgent: Path, base_folder: Path, tmp_path: Path, rows: list[Mapping[str, Any]]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    command = ["bayesianize", str(urgent), "--data", str(data), "--base-model", str(base_folder), *CPU]
    assert main([*command, "--output", str(tmp_path / "wide")]) == 0
    lora, wide = read_config(urgent), read_config(tmp_path / "wide")
    assert replace(wide.prompt, length_power=lora.prompt.length_power) == lora.prompt
    assert (wide.question, wide.policy) == (lora.question, {"min_confidence": 0.6})
    assert (wide.sampling.seed, wide.sampling.stop_error, wide.sampling.n_samples) == (7, 0.1, 8)
    assert wide.training[SEEN]["tuning"] == fingerprints(examples_for(lora, str(data), split="train"))


def test_only_given_flags_override_the_settings_of_a_lora(urgent: Path, base_folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", plain(300))
    command = ["bayesianize", str(urgent), "--data", str(data), "--base-model", str(base_folder), *CPU]
    flags = ("--scoring", "text", "--choice-end", "newline", "--bank-seed", "0", "--n-samples", "3")
    assert main([*command, *flags, "--output", str(tmp_path / "wide")]) == 0
    config = read_config(tmp_path / "wide")
    assert (config.prompt.scoring, config.prompt.choice_end) == ("text", "newline")
    assert (config.prompt.normalization, config.prompt.template) == ("none", "Text: {prompt}\nUrgent:")
    assert (config.sampling.seed, config.sampling.stop_error, config.sampling.n_samples) == (0, 0.1, 3)


def test_one_draw_under_a_threshold_on_the_mutual_information_is_refused(
    urgent: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, data = Path(shutil.copytree(urgent, tmp_path / "lora")), write_jsonl(tmp_path / "rows.jsonl", plain(500))
    rewrite_json(lambda raw: raw.update(policy={"max_mutual_information": 0.2}))(lora / "bayesian_config.json")
    command = ["bayesianize", str(lora), "--data", str(data), "--base-model", str(base_folder), *CPU]
    assert main([*command, "--output", str(tmp_path / "wide"), "--n-samples", "1"]) == 1
    assert "got policy max_mutual_information with n_samples = 1" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "wide"), "--n-samples", "2"]) == 0


def test_choices_beside_a_question_are_refused(
    urgent: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", plain(400))
    command = ["bayesianize", str(urgent), "--data", str(data), "--base-model", str(base_folder), *CPU]
    assert main([*command, "--choices", "false|true", "--output", str(tmp_path / "wide")]) == 1
    assert "the question 'urgent', which brings its own; leave --choices out" in capsys.readouterr().err


def test_an_adapter_with_a_posterior_is_not_made_bayesian_again(
    base_folder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "toy"
    assert main(["train", *train_arguments(base_folder, toy_file, adapter, "--epochs", "1")]) == 0
    command = ["bayesianize", str(adapter), "--data", str(toy_file), "--base-model", str(base_folder)]
    assert main([*command, "--output", str(tmp_path / "again")]) == 1
    assert "an adapter that has a posterior already, expected a plain LoRA" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["model.layers.9.self_attn.q_proj", "lm_head"])
def test_a_lora_of_another_model_or_of_its_head_is_refused(
    module: str, base_folder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = make_lora(tmp_path / "lora")
    weights = lora / "adapter_model.safetensors"
    factors = {tensor_name(module, "A"): torch.ones(3, 32), tensor_name(module, "B"): torch.ones(VOCAB_SIZE, 3)}
    save_file(load_file(weights) | factors, weights)
    arguments = ["--data", str(toy_file), "--output", str(tmp_path / "adapter"), "--base-model", str(base_folder)]
    assert main(["bayesianize", str(lora), *arguments, "--device", "cpu", "--dtype", "float32"]) != 0
    assert f"got adapted module {module} of shape" in (err := capsys.readouterr().err)
    assert "give the base model it was trained on" in err
    assert not (tmp_path / "adapter").exists()
