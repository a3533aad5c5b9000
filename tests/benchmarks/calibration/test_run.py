"""`benchmarks.calibration run` on a tiny model: every method, resumed, and read by the report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.calibration.__main__ import main
from benchmarks.calibration.methods import METHODS
from benchmarks.calibration.report.records import read_results
from benchmarks.calibration.treatments import Predictions, Treatments, evaluations
from blora.decision.metrics import metrics
from blora.decision.temperature import Recalibration, temper
from blora.scores import DRAWN, SCORES
from blora.training.lora.trainer import fit
from tests.training.toys import toy_data, write_jsonl


def arguments(base_folder: Path, folder: Path, *more: str) -> list[str]:
    data = write_jsonl(folder / "toy.jsonl", toy_data(24))
    test = write_jsonl(folder / "held_out.jsonl", toy_data(10, seed=3))
    shift = write_jsonl(folder / "shifted.jsonl", toy_data(12, seed=4, flipped=True))
    return [
        *("run", "--train", f"toy={data}", "--test", f"held_out={test}", "--shift", f"shifted={shift}"),
        *("--shift-limit", "9", "--train-examples", "12", "--validation-examples", "8", "--epochs", "2"),
        *("--layers", "last:1", "--n-samples", "3", "--base-model", str(base_folder), "--device", "cpu"),
        *("--dtype", "float32", "--work", str(folder / "work"), "--output", str(folder / "results"), *more),
    ]


@pytest.fixture(scope="module")
def folder(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method, two seeds."""
    folder = tmp_path_factory.mktemp("grid")
    assert main(arguments(base_folder, folder, "--seeds", "0,1")) == 0
    return folder


def result(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results" / f"{name}.json").read_text())
    return found


def test_there_is_one_result_a_run(folder: Path) -> None:
    expected = {
        f"{name}-seed{seed}.json" if method.seeded else f"{name}.json"
        for name, method in METHODS.items()
        for seed in (0, 1)
    }
    assert {file.name for file in (folder / "results").iterdir()} == expected


def test_the_report_reads_them(folder: Path) -> None:
    runs = read_results(folder / "results")
    assert {run.label for run in runs} == {method.label for method in METHODS.values()}
    assert main(["report", str(folder / "results"), "--output", str(folder / "report")]) == 0
    assert "Bayesian-LoRA" in (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_a_result_says_what_was_done(folder: Path, name: str) -> None:
    found = result(folder, f"{name}-seed0" if METHODS[name].seeded else name)
    done = [(e["dataset"], e["tempered"], e["recalibrated"], e["n_examples"]) for e in found["evaluations"]]
    assert done == [
        (dataset, *treatment, n_examples)
        for dataset, n_examples in (("held_out", 10), ("shifted", 9))
        for treatment in ((False, False), (True, False), (True, True))
    ]
    assert found["n_samples"] == {"base": 1, "lora": 1, "lora_best": 1}.get(name, 3)
    assert (found["training"] is None) == (name == "base")
    assert found["validation"]["n_examples"] == 8
    assert found["command"].startswith("python -m benchmarks.calibration run --train toy=")


def test_methods_differ(folder: Path) -> None:
    nlls = [result(folder, f"{name}-seed0")["evaluations"][0]["nll"] for name in ("dropout", "blob", "bayesian")]
    assert len(set(nlls)) == 3


def test_what_is_there_is_not_done_again(folder: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "results" / "bayesian-seed1.json").unlink()
    before = {file: file.stat().st_mtime_ns for file in (folder / "work").rglob("*.safetensors")}
    assert main(arguments(base_folder, folder, "--seeds", "0,1")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "was there" not in line] == [str(folder / "results" / "bayesian-seed1.json")]
    assert {file: file.stat().st_mtime_ns for file in (folder / "work").rglob("*.safetensors")} == before


def test_a_work_folder_of_other_settings_is_refused(
    folder: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(base_folder, folder, "--epochs", "3")) != 0
    assert "other settings" in capsys.readouterr().err


def test_a_killed_training_goes_on_and_counts_all_its_seconds(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*arguments: Any) -> None:
        fit(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.calibration.methods.fit", kill)
        with pytest.raises(KeyboardInterrupt):
            main(arguments(base_folder, tmp_path, "--methods", "lora", "--seeds", "0"))
    state = next(tmp_path.rglob("checkpoint-*/trainer_state.json"))
    logged = [entry["training_seconds"] for entry in json.loads(state.read_text())["log_history"]]
    assert main(arguments(base_folder, tmp_path, "--methods", "lora", "--seeds", "0")) == 0
    assert result(tmp_path, "lora-seed0")["training"]["seconds"] >= max(logged) > 0
    assert not list(tmp_path.rglob("*.work"))


def test_a_method_that_does_not_exist_is_named(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(base_folder, tmp_path, "--methods", "lora,magic")) != 0
    assert "magic" in capsys.readouterr().err


def test_an_evaluation_holds_the_metrics_at_each_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(3, 40, 4, generator=generator).log_softmax(-1)
    labels = torch.randint(4, (40,), generator=generator)
    lengths = torch.randint(1, 9, (40,), generator=generator).float()
    predictions = Predictions(log_probs, labels, lengths)
    inside = Predictions(log_probs[:, :30], labels[:30], lengths[:30])
    done = evaluations(predictions, Treatments(2.0, Recalibration(3.0, -0.5, 0.1)), in_distribution=inside)
    each = ((1.0, 0.0), (2.0, 0.0), (3.0 / lengths.double().sqrt(), 0.1))
    for found, (temperature, lapse) in zip(done, each, strict=True):
        expected = metrics(temper(log_probs, temperature, lapse).mean(0), labels).to_dict()
        assert {name: found[name] for name in expected} == expected
        assert sum(each["count"] for each in found["reliability"]) == 40
        assert set(found["auroc_error"]) == SCORES.keys() & DRAWN.keys()
        assert all(0.3 < value < 0.7 for value in found["auroc_ood"].values())  # none is of another distribution
    assert [(e["tempered"], e["recalibrated"]) for e in done] == [(False, False), (True, False), (True, True)]


def test_one_draw_has_no_mutual_information() -> None:
    log_probs = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    predictions = Predictions(log_probs, torch.zeros(20, dtype=torch.long), torch.ones(20))
    found = evaluations(predictions, Treatments(1.0, Recalibration()), in_distribution=None)[0]
    assert found["mean_mutual_information"] is None
    assert "mutual_information" not in found["auroc_error"]
    assert found["auroc_ood"] is None


def test_questions_with_fewer_choices_are_not_told_from_others() -> None:
    """Their entropy would be lower whatever a model knows."""
    generator = torch.Generator().manual_seed(0)
    four, two = (torch.randn(3, 40, 4, generator=generator) for _ in range(2))
    two[:, 5:, 2:] = -torch.inf
    shifted, inside = (
        Predictions(x.log_softmax(-1), torch.zeros(40, dtype=torch.long), torch.ones(40)) for x in (two, four)
    )
    found, *_ = evaluations(shifted, Treatments(1.0, Recalibration()), in_distribution=inside)
    assert found["auroc_ood"] is None
