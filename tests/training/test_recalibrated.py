"""An adapter is served with the recalibration fitted to validation rows: after train, tune and bayesianize, at any normalization."""

import random
from pathlib import Path
from typing import Any, get_args

import pytest

from blora.adapter import Adapter, attach, load_adapter
from blora.base_model import BaseModel, load_base_model
from blora.cli import main
from blora.config import NormalizationName
from blora.decision.temperature import Recalibration, fit_recalibration
from blora.posterior.bank import SampleBank
from blora.training.evaluate import evaluate_nested
from blora.training.rows.examples import read_examples
from blora.training.rows.packed import labels_of, pack_examples
from tests.loras import make_lora
from tests.training.toys import toy_data, train_arguments, write_jsonl

CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(autouse=True)
def lapse(monkeypatch: pytest.MonkeyPatch) -> float:
    """Force the fit to find a lapse rate, because a tiny model trained for a moment has none."""

    def fit(*given: Any, **settings: Any) -> Recalibration:
        return fit_recalibration(*given, **settings)._replace(lapse=0.2)

    monkeypatch.setattr("blora.training.trials.fit_recalibration", fit)
    return 0.2


def uneven_rows(n_rows: int, seed: int) -> list[dict[str, Any]]:
    """Questions whose choices have one to five words, equally many within most questions."""
    chosen = random.Random(seed)
    rows = toy_data(n_rows, seed=seed)
    for n, row in enumerate(rows):
        length = chosen.randint(0, 4)
        row["question"] += f" of {seed}"
        row["choices"] = [choice + " so" * (length if n % 3 else chosen.randint(0, 4)) for choice in row["choices"]]
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return files of training rows and validation rows."""
    folder = tmp_path_factory.mktemp("rows")
    return (
        write_jsonl(folder / "train.jsonl", uneven_rows(24, seed=1)),
        write_jsonl(folder / "validation.jsonl", uneven_rows(40, seed=2)),
    )


def as_served(adapter: Adapter, base: BaseModel, rows_file: Path) -> dict[str, float]:
    """Return the metrics of rows under an adapter loaded from its folder."""
    config = adapter.config
    attach(base, adapter)
    rows = pack_examples(read_examples(str(rows_file)), base, config.prompt)
    draws = SampleBank.draw(adapter.posterior, adapter.digest, config.sampling.n_samples, config.sampling.seed).draws
    [found] = evaluate_nested(base.model, rows, draws, [config.sampling.n_samples], config.sampling)
    assert len(labels_of(rows)) == 40
    return found.metrics.to_dict()


@pytest.mark.parametrize("normalization", get_args(NormalizationName))
def test_a_trained_adapter_serves_what_was_fitted(
    base_folder: Path, files: tuple[Path, Path], tmp_path: Path, lapse: float, normalization: NormalizationName
) -> None:
    train, validation = files
    output = tmp_path / "adapter"
    more = ("--validation", str(validation), "--normalization", normalization)
    assert main(["train", *train_arguments(base_folder, train, output, *more)]) == 0
    base = load_base_model(str(base_folder), device="cpu", dtype="float32")
    adapter = load_adapter(output, base)
    said = adapter.config.training["validation"]
    served = as_served(adapter, base, validation)
    assert served["nll"] == pytest.approx(said["nll"], abs=1e-5)
    assert served["ece"] == pytest.approx(said["ece"], abs=1e-5)
    assert adapter.config.sampling.lapse == lapse
    assert (adapter.config.prompt.length_power != 1) == (normalization == "question")


def test_a_tuned_adapter_serves_what_was_fitted(base_folder: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    train, validation = files
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["train", *train_arguments(base_folder, train, first)]) == 0
    command = ["tune", str(first), "--data", str(validation), "--output", str(second), "--scales", "0.5,1"]
    assert main([*command, "--base-model", str(base_folder), *CPU]) == 0
    assert_served_as_tuned(second, base_folder, validation)


def test_a_lora_made_bayesian_serves_what_was_fitted(
    base_folder: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    lora, output = make_lora(tmp_path / "lora"), tmp_path / "adapter"
    command = ["bayesianize", str(lora), "--data", str(files[1]), "--output", str(output), "--n-samples", "4"]
    assert main([*command, "--base-model", str(base_folder), "--scales", "0.25,0.5", *CPU]) == 0
    assert_served_as_tuned(output, base_folder, files[1])


def assert_served_as_tuned(folder: Path, base_folder: Path, rows_file: Path) -> None:
    """Assert that the adapter's metrics equal the metrics of the chosen trial."""
    base = load_base_model(str(base_folder), device="cpu", dtype="float32")
    adapter = load_adapter(folder, base)
    tuning = adapter.config.training["tuning"]
    [said] = [trial for trial in tuning["trials"] if trial["scale"] == tuning["scale"]]
    assert as_served(adapter, base, rows_file)["nll"] == pytest.approx(said["nll"], abs=1e-5)
    assert adapter.config.sampling.lapse == said["lapse"] == 0.2
    assert adapter.config.prompt.length_power == said["length_power"] != 1
