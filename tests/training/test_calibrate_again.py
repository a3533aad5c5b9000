"""Attempts on the same calibration rows count together when the adapter is trained or tuned again in between."""

import json
from pathlib import Path

import pytest

from blora.adapter import read_config
from blora.adapter.calibration_file import read_calibrations
from blora.cli import main
from blora.errors import ConfigError
from tests.training.test_calibrate import labelled_by, run
from tests.training.toys import toy_row, train_arguments, write_jsonl


def train_again(adapter: Path, base_folder: Path, toy_file: Path, *more: str) -> None:
    assert main(["train", *train_arguments(base_folder, toy_file, adapter, "--epochs", "1", *more)]) == 0


def noisy(adapter: Path, base_folder: Path, file: Path) -> Path:
    """Rows of which the adapter gets a fifth wrong, so that 15 % is not proved."""
    rows = [json.loads(line) for line in labelled_by(adapter, base_folder, file).read_text().splitlines()]
    return write_jsonl(file, [row | {"label": row["label"] ^ (k % 5 == 0)} for k, row in enumerate(rows)])


def test_attempts_of_an_adapter_that_is_trained_and_tuned_again_add_up(
    base_folder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "toy"
    train_again(adapter, base_folder, toy_file)
    data = noisy(adapter, base_folder, tmp_path / "noisy.jsonl")
    with pytest.raises(ConfigError, match="The rows are used up at delta 0.1:"):
        run(adapter, data, base_folder, "--target-risk", "0.15")
    capsys.readouterr()
    train_again(adapter, base_folder, toy_file, "--bank-seed", "7")
    assert "kept the record of calibration attempts (1) in " in capsys.readouterr().err
    with pytest.raises(ConfigError, match="The rows are used up at delta 0.2:"):
        run(adapter, data, base_folder, "--target-risk", "0.15")
    tuning = write_jsonl(tmp_path / "tuning.jsonl", [toy_row(50 + index, index % 2) for index in range(20)])
    common = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32", "--scales", "1")
    assert main(["tune", str(adapter), "--data", str(tuning), *common]) == 0
    assert "kept the record of calibration attempts (2) in " in capsys.readouterr().err
    [calibration] = run(adapter, data, base_folder, "--target-risk", "0.8")
    assert ([ask.target_risk for ask in calibration.asks], calibration.delta) == ([0.15, 0.15, 0.8], 0.3)


def test_the_identical_training_writes_the_same_contents_and_keeps_their_calibration(
    base_folder: Path, toy_file: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "toy"
    train_again(adapter, base_folder, toy_file)
    data = labelled_by(adapter, base_folder, tmp_path / "unseen.jsonl")
    [calibration] = run(adapter, data, base_folder)
    train_again(adapter, base_folder, toy_file)
    assert read_calibrations(adapter) == (calibration,)
    assert run(adapter, data, base_folder) == (calibration,)  # the same attempt counts once
    assert "seconds" not in read_config(adapter).training
