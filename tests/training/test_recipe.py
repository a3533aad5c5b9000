import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blora.adapter import load_adapter
from blora.base_model import load_base_model
from blora.config import AdapterConfig, PosteriorConfig, PromptConfig
from blora.errors import AdapterError, BaseModelError, BloraError, ConfigError, DataError
from blora.training.commands import train
from blora.training.config import TrainConfig
from blora.training.recipe import prompt_of
from blora.training.rows.examples import read_examples
from blora.training.rows.overlap import fingerprints
from tests.training.conftest import REVISION
from tests.training.toys import toy_data, toy_row, train_arguments, write_jsonl

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "arc_easy_train.jsonl"

FORMS = {
    "lora": ("--method", "lora", "--lora-learning-rate", "0.02"),
    "diagonal": ("--family", "diagonal"),
    "matrix_normal": ("--family", "matrix_normal"),
    "flow": ("--family", "flow"),
    "top": ("--bayesian-layers", "last:1"),
}


def config_of(adapter: Path) -> AdapterConfig:
    return AdapterConfig.from_json((adapter / "bayesian_config.json").read_bytes())


def trained(base_folder: Path, data: Path, output: Path, *more: str) -> AdapterConfig:
    assert train.main(train_arguments(base_folder, data, output, *more)) == 0
    return config_of(output)


# From the command to the adapter


@pytest.mark.parametrize("form", FORMS)
def test_training_writes_an_adapter_that_loads(
    tmp_path: Path, base_folder: Path, toy_file: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "adapters" / "toy"
    config = trained(base_folder, toy_file, output, *FORMS[form])
    adapter = load_adapter(output, load_base_model(str(base_folder), device="cpu", dtype="float32"))
    assert adapter.config == config
    assert adapter.name == "toy"
    assert config.posterior.method == ("lora" if form == "lora" else "bayesian")
    assert config.base_model.id == "tiny-llama"
    assert config.sampling.n_samples == (1 if form == "lora" else 3)
    validation = config.training["validation"]
    assert (validation["n_examples"], validation["n_samples"]) == (2, 1 if form == "lora" else 3)
    assert all(0 <= validation[name] < float("inf") for name in ("accuracy", "nll", "ece", "brier", "aurc"))
    assert f"wrote {output}: validation accuracy {validation['accuracy']:.3f}" in capsys.readouterr().out


def test_the_record_says_how_the_adapter_was_made(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    arguments = train_arguments(base_folder, toy_file, tmp_path / "toy", "--kl-weight", "0.5", "--epochs", "1")
    assert train.main(arguments) == 0
    record = config_of(tmp_path / "toy").training
    assert shlex.split(record["command"]) == ["blora", "train", *arguments]
    assert record["revision"] == REVISION
    assert record["dtype"] == "float32"
    assert record["machine"]["torch"] == torch.__version__
    assert record["settings"]["kl_weight"] == 0.5
    assert record["settings"]["learning_rate"] == TrainConfig(work_dir=Path()).learning_rate
    assert record["settings"]["max_grad_norm"] == 1.0
    assert not {"work_dir", "resume", "trunk_cache_gib"} & set(record["settings"])
    assert "accelerator" not in record["machine"]
    assert record["train"]["source"] == record["validation"]["source"] == "toy.jsonl"
    assert record["train"]["n_examples"] == 18
    assert record["train"]["digest"] == record["validation"]["digest"]
    train_rows, validation_rows = record["seen"]["train"], record["seen"]["validation"]
    assert (len(train_rows), len(validation_rows)) == (12 * 18, 12 * 2)
    parts = [text[i : i + 12] for text in (train_rows, validation_rows) for i in range(0, len(text), 12)]
    assert "".join(sorted(parts)) == fingerprints(read_examples(str(toy_file)))


def test_settings_reach_the_adapter(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    config = trained(
        *(base_folder, toy_file, tmp_path / "toy", "--epochs", "0.5", "--choices", "warm|cold", "--layers", "last:1"),
        *("--target-modules", "q_proj,o_proj", "--template", "Say: {prompt}", *("--normalization", "choice")),
        *("--prior-std", "0.3", "--bank-seed", "9", "--min-confidence", "0.7", "--max-mutual-information", "0.1"),
    )
    assert set(config.modules) == {f"model.layers.1.self_attn.{name}" for name in ("q_proj", "o_proj")}
    assert config.target_modules == ("q_proj", "o_proj")
    assert config.prompt.template == "Say: {prompt}"
    assert config.prompt.choices == ("warm", "cold")
    assert config.prompt.normalization == "choice"
    assert (config.posterior.rank, config.posterior.prior_std) == (2, 0.3)
    assert config.sampling.seed == 9
    assert config.policy == {"min_confidence": 0.7, "max_mutual_information": 0.1}


@pytest.mark.parametrize(("kind", "template"), [("question", "Question: {prompt}\nAnswer:"), ("prompt", "{prompt}")])
def test_the_template_is_that_of_the_data_unless_given(
    tmp_path: Path, base_folder: Path, kind: str, template: str
) -> None:
    rows = [{(kind if key == "question" else key): value for key, value in row.items()} for row in toy_data(6)]
    data = write_jsonl(tmp_path / "toy.jsonl", rows)
    assert trained(base_folder, data, tmp_path / "toy", "--epochs", "1").prompt.template == template


def test_a_validation_file_leaves_all_rows_to_train_on(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [toy_row(20 + index, index % 2) for index in range(7)])
    record = trained(
        *(base_folder, toy_file, tmp_path / "toy", "--validation", str(other), "--validation-examples", "5"),
        *("--epochs", "1"),
    ).training
    assert (record["train"]["source"], record["train"]["n_examples"]) == ("toy.jsonl", 20)
    assert (record["validation"]["source"], record["validation"]["n_examples"]) == ("other.jsonl", 5)
    assert record["train"]["digest"] != record["validation"]["digest"]


def test_another_normalization_does_not_keep_a_fitted_length_power() -> None:
    fitted = PromptConfig(length_power=1.6)
    assert prompt_of({"normalization": "choice"}, fitted).length_power == 1
    assert prompt_of({"normalization": "question"}, fitted).length_power == 1.6


# Refused before any training

REFUSED: dict[str, tuple[tuple[str, ...], type[BloraError], str]] = {
    "no data": (("--data", "nowhere.jsonl"), DataError, "data file nowhere.jsonl cannot be read"),
    "no base model": (("--base-model", "./nowhere"), BaseModelError, "got base model './nowhere', which does not load"),
    "unknown dtype": (("--dtype", "float8"), BaseModelError, "got dtype 'float8'"),
    "unknown device": (("--device", "abacus"), BaseModelError, "got device 'abacus'"),
    "no such layer": (("--layers", "last:9"), ConfigError, "got layers 'last:9' of a model with 2"),
    "no such module": (("--target-modules", "w_proj"), ConfigError, r"got target modules \['w_proj'\] that match no"),
    "template": (("--template", "no place"), ConfigError, "prompt template 'no place'"),
    "fixed labels": (("--choices", "yes|no"), DataError, "expected none or the fixed label set"),
    "policy": (("--min-confidence", "1.5"), ConfigError, "got policy min_confidence = 1.5"),
    "rank": (("--rank", "0"), ConfigError, "rank = 0"),
    "bank": (("--n-samples", "0"), SystemExit, "2"),
    "too many draws": (("--n-samples", "2000"), ConfigError, "n_samples = 2000"),
    "a familiarity without a head": (
        ("--min-familiarity", "0.05"),
        ConfigError,
        "got --min-familiarity without a head",
    ),
    "a mutual information of one draw": (
        ("--max-mutual-information", "0.1", "--n-samples", "1"),
        ConfigError,
        "got policy max_mutual_information with n_samples = 1, expected at least 2 different draws",
    ),
    "a mutual information of a plain LoRA": (
        ("--max-mutual-information", "0.1", "--method", "lora"),
        ConfigError,
        "got policy max_mutual_information with n_samples = 1",
    ),
    "a mutual information of a head with one draw": (
        (
            *("--head", "pointer", "--layers", "none", "--inducing-rows", "9", "--inducing-cols", "9", "--rank", "8"),
            *("--alpha", "16", "--epochs", "4", "--batch-size", "8"),
            *("--max-mutual-information", "0.1", "--n-samples", "1"),
        ),
        ConfigError,
        "got policy max_mutual_information with n_samples = 1",
    ),
    "early stopping": (("--stop-error", "0.6"), ConfigError, "stop_error = 0.6"),
    "epochs": (("--epochs", "0"), ConfigError, "got epochs = 0"),
    "learning rate": (("--learning-rate", "0"), ConfigError, "got learning_rate = 0"),
    "a rate that LoRA lacks": (("--method", "lora", "--learning-rate", "1"), ConfigError, "--lora-learning-rate"),
    "Bayesian layers outside": (("--layers", "0", "--bayesian-layers", "1"), ConfigError, r"\[1\] that are not"),
    "negative learning rate": (("--learning-rate", "-1"), ConfigError, "got learning_rate = -1"),
    "too many rows": (("--train-examples", "20"), DataError, "got 20 rows in toy.jsonl, expected 20 to train and 0"),
    "no training rows": (("--validation", "{data}", "--train-examples", "0"), SystemExit, "2"),
    "validation rows that are trained on": (
        ("--validation", "{data}"),
        DataError,
        r"got 20 of 20 validation questions that are also trained on.*toy.jsonl:1 and .*toy.jsonl:1; ",
    ),
    "negative training rows": (("--validation", "{data}", "--train-examples", "-3"), SystemExit, "2"),
    "no validation rows": (("--validation", "{data}", "--validation-examples", "0"), SystemExit, "2"),
    "a split of no validation data": (("--validation-split", "test"), ConfigError, "--validation-split without"),
    "a seed of no division": (("--validation", "{data}", "--split-seed", "1"), ConfigError, "--split-seed with"),
    "negative seed": (("--seed", "-1"), BloraError, "got "),
    "negative split seed of the bank": (("--bank-seed", "-1"), ConfigError, "seed = -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_cannot_work_is_refused_before_it_starts(
    tmp_path: Path, base_folder: Path, toy_file: Path, name: str
) -> None:
    more, error, message = REFUSED[name]
    arguments = [argument.replace("{data}", str(toy_file)) for argument in more]
    with pytest.raises(error, match=message):
        train.main(train_arguments(base_folder, toy_file, tmp_path / "toy", *arguments))
    assert list(tmp_path.iterdir()) == []


def test_of_the_rows_that_are_used_alone_none_may_be_in_both_parts(
    tmp_path: Path, base_folder: Path, toy_file: Path
) -> None:
    back = write_jsonl(tmp_path / "back.jsonl", list(reversed(toy_data(20))))
    parts = ("--validation", str(back), "--train-examples", "12", "--validation-examples", "8", "--epochs", "1")
    record = trained(base_folder, toy_file, tmp_path / "toy", *parts).training
    assert (record["train"]["n_examples"], record["validation"]["n_examples"]) == (12, 8)


def test_a_posterior_starts_from_a_lora(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    trained(base_folder, toy_file, tmp_path / "lora", "--method", "lora", "--lora-learning-rate", "0.05")
    rates = [f"--{kind}learning-rate=1e-12" for kind in ("", "input-", "scale-")]
    still = ("--init-from", str(tmp_path / "lora"), *rates, "--epochs", "1")
    config = trained(base_folder, toy_file, tmp_path / "bayesian", *still)
    before = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    after = load_file(tmp_path / "bayesian" / "adapter_model.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)
    assert config.posterior.method == "bayesian"
    assert config.training["init_from"] == str(tmp_path / "lora")


def test_a_lora_of_another_rank_is_no_place_to_start(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    trained(base_folder, toy_file, tmp_path / "lora", "--method", "lora", "--rank", "1", "--epochs", "1")
    arguments = train_arguments(base_folder, toy_file, tmp_path / "toy", "--init-from", str(tmp_path / "lora"))
    with pytest.raises(AdapterError, match=r"got r = 1 in .*lora, expected 2; .* pass --rank 1$"):
        train.main(arguments)


def test_a_foreign_output_folder_is_refused_before_training(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(AdapterError, match="which holds other files"):
        train.main(train_arguments(base_folder, toy_file, tmp_path / "toy"))
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert (tmp_path / "toy" / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize(
    "more", [("--method", "full"), ("--family", "cauchy"), ("--scoring", "tone"), ("--rank", "two"), ("--epochs", "x")]
)
def test_an_argument_of_the_wrong_form_is_a_wrong_call(
    tmp_path: Path, base_folder: Path, toy_file: Path, more: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(train_arguments(base_folder, toy_file, tmp_path / "toy", *more))
    assert caught.value.code == 2


@pytest.mark.parametrize("limit", [0.25, 0])
def test_gradients_are_clipped_as_the_record_says(
    tmp_path: Path, base_folder: Path, toy_file: Path, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = set()
    clip = torch.nn.utils.clip_grad_norm_

    def seen(parameters: Any, max_norm: float, **more: Any) -> torch.Tensor:
        limits.add(max_norm)
        return clip(parameters, max_norm, **more)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", seen)
    more = ("--max-grad-norm", str(limit), "--epochs", "1")
    config = trained(base_folder, toy_file, tmp_path / "toy", *more)
    assert limits == {limit or float("inf")}  # the Trainer measures the norm where nothing is clipped
    assert config.training["settings"]["max_grad_norm"] == limit


def test_every_setting_has_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for config in (PosteriorConfig, TrainConfig):
        for field in fields(config):
            assert f"--{field.name.replace('_', '-')} " in text
    assert "passes over the training rows (default: 4.0)" in text


# The real command, without docstrings, killed and resumed


def test_help_needs_no_docstrings() -> None:
    command = [sys.executable, "-OO", "-m", "blora.cli", "train", "--help"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "LoRA rank (default: 8)" in out
    assert "passes over the training rows" in out


def blora(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "blora.cli", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str], timeout_s: float) -> str:
    try:
        output, _ = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def is_json(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text()))
    except (OSError, ValueError):
        return False


def test_a_killed_command_resumes_to_the_same_adapter(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    more = ("--epochs", "8", "--patience", "8")
    whole = trained(base_folder, toy_file, tmp_path / "whole", *more)
    arguments = ("train", *train_arguments(base_folder, toy_file, tmp_path / "parts", *more))
    work_dir = tmp_path / "parts.work"
    process = blora(*arguments)
    deadline = time.monotonic() + 60
    while not any(is_json(file) for file in work_dir.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "parts").exists()
    parts = trained(base_folder, toy_file, tmp_path / "parts", *more, "--resume")
    first, second = (load_file(tmp_path / name / "posterior.safetensors") for name in ("whole", "parts"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-5)
    assert parts.training["validation"] == pytest.approx(whole.training["validation"], abs=1e-5)


def test_an_unfinished_run_goes_on_with_the_same_weights_and_any_number_of_draws(
    tmp_path: Path, base_folder: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AdapterError("the disk is full")

    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    with monkeypatch.context() as patch:
        patch.setattr("blora.training.run.save_adapter", broken)
        with pytest.raises(AdapterError, match="full"):
            trained(base, toy_file, tmp_path / "toy", "--epochs", "1")
    weights = (base / "model.safetensors").read_bytes()
    save_file({name: 2 * tensor for name, tensor in load_file(base / "model.safetensors").items()}, base / "other")
    (base / "other").rename(base / "model.safetensors")
    with pytest.raises(ConfigError, match="of a run with other settings"):
        trained(base, toy_file, tmp_path / "toy", "--epochs", "1", "--resume")
    (base / "model.safetensors").write_bytes(weights)
    file = tmp_path / "toy.work" / "run.json"
    begun = file.read_text()
    for other in ({"processes": 2}, {"dtype": "bfloat16"}):  # steps of other sizes, and of another rounding
        file.write_text(json.dumps(json.loads(begun) | other, sort_keys=True))
        with pytest.raises(ConfigError, match="of a run with other settings"):
            trained(base, toy_file, tmp_path / "toy", "--epochs", "1", "--resume")
    file.write_text(begun)
    assert (
        trained(base, toy_file, tmp_path / "toy", "--epochs", "1", "--resume", "--n-samples", "5").sampling.n_samples
        == 5
    )


@pytest.mark.model
@pytest.mark.data
@pytest.mark.skipif(not DATA.is_file(), reason="../shared/data is not there")
def test_the_embedded_model_is_trained_and_evaluated(tmp_path: Path) -> None:
    adapter, result = tmp_path / "arc", tmp_path / "result.json"
    finished(
        blora(
            *("train", "--data", str(DATA), "--output", str(adapter), "--layers", "last:4", "--epochs", "1"),
            *("--head", "none", "--train-examples", "24", "--validation-examples", "8", "--validation-draws", "2"),
        ),
        300,
    )
    out = finished(
        blora(
            *("evaluate", str(adapter), "--data", str(DATA), "--limit", "8", "--split", "train"),
            *("--n-samples", "2", "--json", str(result)),
        ),
        300,
    )
    figures: dict[str, Any] = json.loads(result.read_text())
    assert (figures["n_examples"], figures["n_samples"], figures["method"]) == (8, 2, "bayesian")
    assert figures["base_model"] == "smollm2-135m-instruct"
    assert 0 < figures["nll"] < float("inf")
    training = config_of(adapter).training
    assert training.pop("seen").keys() == {"train", "validation"}
    assert figures["training"] == training
    assert figures["training"]["train"]["n_examples"] == 24
    assert f"nll {figures['nll']:.4f}" in out
