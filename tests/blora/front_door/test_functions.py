"""`import blora`: light until it is used, and then an adapter by its folder, by training or around a LoRA."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import TrainerCallback

import blora
from blora.adapter import read_config
from blora.errors import AdapterError, BloraError, ConfigError, DataError, NotCalibratedError
from blora.training.lora import trainer
from tests.loras import make_lora
from tests.training.toys import CHOICES, toy_data, toy_row

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "transformers", "peft", "pydantic", "httpx", "numpy", "datasets", "tqdm")
# What `blora[model]` does not bring.
OF_OTHER_EXTRAS = (
    *("fastapi", "uvicorn", "pydantic_settings", "prometheus_client", "opentelemetry", "greenlet", "datasets"),
)
SMALL: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "head": "none",
    "rank": 2,
    "alpha": 4.0,
    "inducing_rows": 3,
    "inducing_cols": 3,
    "epochs": 1.0,
    "batch_size": 4,
    "n_samples": 3,
}


@pytest.fixture
def small(base_folder: Path) -> dict[str, Any]:
    """Settings of a run that takes a moment."""
    return SMALL | {"base_model": str(base_folder)}


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# The package


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = json.loads(python("import json, sys, blora; blora.__version__; print(json.dumps(sorted(sys.modules)))"))
    assert not set(HEAVY) & {name.partition(".")[0] for name in loaded}
    assert {name for name in loaded if name.startswith("blora")} == {"blora"}


def test_every_public_name_is_there_and_listed() -> None:
    assert set(blora.__all__) <= set(dir(blora))
    for name in blora.__all__:
        assert getattr(blora, name) is not None
    with pytest.raises(AttributeError, match="module 'blora' has no attribute 'lode'"):
        _ = blora.lode  # type: ignore[attr-defined]


def test_answers_need_the_model_extra_alone(base_folder: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    blora.train(toy_data(20), output=tmp_path / "toy", **small)
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in OF_OTHER_EXTRAS)
    load = f"blora.load({str(tmp_path / 'toy')!r}, base_model={str(base_folder)!r}, dtype='float32')"
    said = python(
        f"import sys; {blocked}import blora; print(repr({load}.predict('red 77', choices={list(CHOICES)!r})))"
    )
    assert said.startswith("Prediction('")


# Training


def test_rows_and_a_folder_are_all_that_training_takes(tmp_path: Path, small: dict[str, Any]) -> None:
    rows = [{"text": row["question"], "label": CHOICES[row["label"]]} for row in toy_data(20)]
    model = blora.train(rows, output=tmp_path / "toy", **small)
    config = read_config(tmp_path / "toy")
    assert model.choices == config.prompt.choices == ("cold", "warm")
    assert (config.prompt.template, config.prompt.choice_end) == ("{prompt}", "newline")
    assert (config.posterior.rank, config.sampling.n_samples, config.policy) == (2, 3, None)
    assert config.training["settings"]["epochs"] == 1.0
    assert (config.training["train"]["n_examples"], config.training["validation"]["n_examples"]) == (18, 2)
    call = config.training["command"]
    assert call.startswith(f"blora.train(<list>, output={str(tmp_path / 'toy')!r}, ")
    assert "epochs=1.0" in call
    assert not (tmp_path / "toy.work").exists()
    # What is returned answers as what is on disk does.
    loaded = blora.load(tmp_path / "toy", base_model=small["base_model"], device="cpu", dtype="float32")
    first, second = model.predict("red 77"), loaded.predict("red 77")
    assert first.adapter == second.adapter
    assert [c.probability for c in first.probabilities] == pytest.approx([c.probability for c in second.probabilities])


def test_a_published_data_set_trains_as_it_is(tmp_path: Path, small: dict[str, Any]) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["warm", "cold"])}
    )
    rows = [{"text": row["question"], "label": row["label"]} for row in toy_data(20)]
    model = blora.train(datasets.Dataset.from_list(rows, features=features), output=tmp_path / "toy", **small)
    assert model.choices == ("warm", "cold")


def test_settings_are_those_of_the_command(tmp_path: Path, small: dict[str, Any]) -> None:
    blora.train(
        [{"body": row["question"], "choices": row["choices"], "label": row["label"]} for row in toy_data(12)],
        output=str(tmp_path / "toy"),
        columns={"question": "body"},
        validation=[{"body": "blue 99", "choices": list(CHOICES), "label": 1}],
        **small | {"layers": "last:1", "bank_seed": 9, "min_confidence": 0.6, "template": "Say: {prompt}"},
    )
    config = read_config(tmp_path / "toy")
    assert config.training["validation"]["n_examples"] == 1
    assert (config.sampling.seed, config.policy, config.prompt.template) == (
        9,
        {"min_confidence": 0.6},
        "Say: {prompt}",
    )
    assert all(".layers.1." in name for name in config.modules)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epoch": 3}, ConfigError, "got unknown settings epoch, expected those of `blora train --help`"),
        ({"rank": 0}, ConfigError, "rank = 0"),
        ({"report_to": "clipboard"}, ConfigError, "got report_to = 'clipboard', expected one of none, tensorboard"),
        ({"choices": "up|down"}, ConfigError, "got the text 'up|down' as choices, expected a list of texts"),
        (
            {"target_modules": "q_proj"},
            ConfigError,
            "got the text 'q_proj' as target_modules, expected a list of names",
        ),
        ({"epochs": "3"}, ConfigError, "got epochs = '3', expected a number"),
        ({"batch_size": 2.5}, ConfigError, "got batch_size = 2.5, expected a whole number"),
        ({"rank": True}, ConfigError, "got rank = True, expected a whole number"),
        ({"n_samples": "8"}, ConfigError, "got n_samples = '8', expected a whole number"),
        ({"depths": (1, 2)}, ConfigError, r"got depths = \(1, 2\), expected a text"),
        ({"layers": 1}, ConfigError, "got layers = 1, expected a text"),
        ({"min_confidence": "0.5"}, ConfigError, "got min_confidence = '0.5', expected a number"),
        ({"columns": "prompt=text"}, ConfigError, "got columns = 'prompt=text', expected a mapping"),
        ({"choices": ("up", "down")}, DataError, "expected none or the fixed label set"),
        (
            {"columns": {"prompt": "body"}},
            DataError,
            r"rows\[0\]: got the columns question, choices, label, expected body",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, small: dict[str, Any], settings: dict[str, Any], error: type[BloraError], message: str
) -> None:
    with pytest.raises(error, match=message):
        blora.train(toy_data(20), output=tmp_path / "toy", **small | settings)
    assert list(tmp_path.iterdir()) == []


def test_few_validation_rows_are_warned_of(
    tmp_path: Path, small: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="blora"):
        blora.train(toy_data(20), output=tmp_path / "toy", **small)
    said = {record.levelname: record.getMessage() for record in caplog.records}
    assert said["WARNING"].startswith("there are only 2 validation rows")
    assert said["INFO"].startswith(f"wrote {tmp_path / 'toy'}: validation NLL")


class Steps(TrainerCallback):
    """Counts the steps that it is told of."""

    def __init__(self) -> None:
        self.n_steps = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.n_steps += 1


def test_callbacks_are_told_of_every_step(tmp_path: Path, small: dict[str, Any]) -> None:
    steps = Steps()
    blora.train(toy_data(20), output=tmp_path / "toy", callbacks=[steps], **small)
    assert steps.n_steps == 5  # 18 rows in batches of 4


def test_callbacks_are_refused_where_no_steps_are_taken(tmp_path: Path, base_folder: Path) -> None:
    with pytest.raises(ConfigError, match="got callbacks for a head alone, which takes no steps"):
        blora.train(
            toy_data(20), output=tmp_path / "toy", callbacks=[Steps()], base_model=str(base_folder), device="cpu"
        )
    assert not (tmp_path / "toy").exists()


# Trackers


def test_a_tracker_that_is_not_installed_is_named(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "get_available_reporting_integrations", lambda: ["mlflow"])
    with pytest.raises(ConfigError, match=r"got report_to = 'wandb', .*pip install wandb"):
        blora.train(toy_data(20), output=tmp_path / "toy", report_to="wandb", **small)
    trainer.check_tracker("mlflow")
    trainer.check_tracker("none")


class ToldError(Exception):
    """Stops a run where its arguments are known."""


@pytest.mark.parametrize("name", ["none", "wandb", "mlflow"])
def test_a_tracker_is_the_trainers_own(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: dict[str, Any]
) -> None:
    told = []

    def arguments(**given: Any) -> None:
        told.append(given["report_to"])
        raise ToldError

    monkeypatch.setattr(trainer, "get_available_reporting_integrations", lambda: ["mlflow", "wandb"])
    monkeypatch.setattr(trainer, "TrainingArguments", arguments)
    with pytest.raises(ToldError):
        blora.train(toy_data(20), output=tmp_path / "toy", report_to=name, **small)
    assert told == [name]


def test_files_of_tensorboard_outlive_the_work_folder(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Board(TrainerCallback):
        logging_dir = None

        def on_log(self, *args: Any, **kwargs: Any) -> None:
            assert self.logging_dir is not None
            Path(self.logging_dir).mkdir(exist_ok=True)

    monkeypatch.setattr(trainer, "get_available_reporting_integrations", lambda: ["tensorboard"])
    monkeypatch.setattr(trainer, "TensorBoardCallback", Board)
    blora.train(toy_data(20), output=tmp_path / "toy", report_to="tensorboard", **small)
    assert {path.name for path in tmp_path.iterdir()} == {"toy", "toy.work.runs"}


# Around a LoRA


def test_a_lora_becomes_bayesian(tmp_path: Path, base_folder: Path) -> None:
    rows = [{"text": row["question"], "label": CHOICES[row["label"]]} for row in toy_data(20)]
    where = {"base_model": str(base_folder), "device": "cpu", "dtype": "float32"}
    lora = make_lora(tmp_path / "lora")
    model = blora.bayesianize(lora, rows, output=tmp_path / "toy", n_samples=4, scales=(0.25, 0.5), **where)
    config = read_config(tmp_path / "toy")
    assert config.training["tuning"]["scale"] in (0.25, 0.5)
    assert config.training["command"].startswith(f"blora.bayesianize({str(lora)!r}, <list>, ")
    assert model.choices == ("cold", "warm")
    assert model.predict("red 77").n_samples == 4
    with pytest.raises(ConfigError, match="got unknown settings epochs, expected those of `blora bayesianize --help`"):
        blora.bayesianize(lora, rows, output=tmp_path / "other", epochs=3, **where)


# Loading


def test_the_base_model_of_a_folder_has_to_be_named(tmp_path: Path, small: dict[str, Any]) -> None:
    blora.train(toy_data(20), output=tmp_path / "toy", **small)
    with pytest.raises(AdapterError, match=r"base model 'tiny-llama', .*base_model= in Python"):
        blora.load(tmp_path / "toy")
    with pytest.raises(AdapterError, match="got adapter nowhere, expected an existing directory"):
        blora.load("nowhere")


def test_a_calibration_that_does_not_hold_is_refused_unless_allowed(tmp_path: Path, small: dict[str, Any]) -> None:
    model = blora.train(toy_data(20), output=tmp_path / "toy", **small)
    rows = [toy_row(100 + n, n % 2) for n in range(60)]
    asked = [{"question": row["question"], "choices": row["choices"]} for row in rows]
    given = [prediction.top_choice for prediction in model.predict(asked)]
    model.calibrate([row | {"label": top} for row, top in zip(rows, given, strict=True)], target_risk=0.2, delta=0.1)
    where = {"base_model": small["base_model"], "device": "cpu", "dtype": "bfloat16"}
    with pytest.raises(NotCalibratedError, match="got calibration for dtype float32"):
        blora.load(tmp_path / "toy", **where)
    allowed = blora.load(tmp_path / "toy", allow_uncalibrated=True, **where)
    assert allowed.predict(asked[0]).warnings == ["not_calibrated"]
    assert allowed.calibration is None
