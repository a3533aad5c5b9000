"""`blora familiarize`: an adapter with a head gets the familiarity that its training would have given it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blora.adapter import load_adapter, read_config
from blora.adapter.calibration_file import read_calibrations
from blora.adapter.folder import FAMILIARITY_FILE
from blora.adapter.opening import open_adapter, open_base
from blora.cli import main
from blora.decision.calibrate import calibrate
from blora.decision.calibration import Calibration, Goal
from blora.decision.familiarity import Familiarity
from blora.questions.fingerprints import parts
from blora.training.calibrate import calibrate_adapter
from blora.training.evaluate import CPU_BATCH_TOKENS
from blora.training.head.familiarity import with_guesses
from blora.training.rows.examples import examples_for
from blora.training.rows.packed import LabelledRow, pack_examples
from tests.blora.adapter.test_calibration_file import asked
from tests.blora.adapters import rewrite_json, saved
from tests.training.head.test_fit import arguments, fixed
from tests.training.head.test_head_familiarity import FOREIGN, distance_alone, opened, rows_of, tuned
from tests.training.toys import toy_data, write_jsonl


@pytest.fixture(scope="module")
def made(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, other rows, an adapter `toy` trained on both, and a copy `bare` without its familiarity."""
    folder = tmp_path_factory.mktemp("familiarize")
    write_jsonl(folder / "rows.jsonl", fixed(toy_data(60)))
    write_jsonl(folder / "others.jsonl", rows_of(100, 160))
    more = ("--validation", str(folder / "others.jsonl"))
    assert main(arguments(base_folder, folder / "rows.jsonl", folder / "toy", *more)) == 0
    shutil.copytree(folder / "toy", folder / "bare")
    rewrite_json(lambda raw: raw.update(familiarity=None))(folder / "bare" / "bayesian_config.json")
    (folder / "bare" / FAMILIARITY_FILE).unlink()
    return folder


def command(adapter: Path, base_folder: Path, data: Path, *more: str) -> list[str]:
    model = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32")
    return ["familiarize", str(adapter), "--data", str(data), *model, *more]


def test_a_split_of_no_validation_data_is_refused(
    made: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(made / "bare", base_folder, made / "rows.jsonl", "--validation-split", "test")) == 1
    assert "got --validation-split without --validation" in capsys.readouterr().err


def test_the_familiarity_is_that_of_a_training_on_the_same_rows(
    made: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--validation", str(made / "others.jsonl"), "--output", str(tmp_path / "new"))
    assert main(command(made / "bare", base_folder, made / "rows.jsonl", *more)) == 0
    assert "p-values among 60 rows" in capsys.readouterr().out
    base = open_base(str(base_folder), device="cpu", dtype="float32")
    expected, found = (load_adapter(folder, base) for folder in (made / "toy", tmp_path / "new"))
    assert expected.familiarity is not None
    assert found.familiarity is not None
    beyond = expected.familiarity.config.guesses_beyond
    assert found.familiarity.config.guesses_beyond == pytest.approx(beyond, abs=1e-2)
    assert replace(found.familiarity.config, guesses_beyond=beyond) == expected.familiarity.config
    for name, tensor in expected.familiarity.tensors().items():
        torch.testing.assert_close(found.familiarity.tensors()[name], tensor, rtol=1e-3, atol=1e-4)
    assert found.config.training["familiarity"]["n_examples"] == 60
    assert found.config.head == expected.config.head
    assert not (made / "bare" / FAMILIARITY_FILE).exists()


def test_it_reads_requests_as_the_adapter_is_asked_them(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instructions = "Which of the two colours does this text speak of?"
    choices = [{"value": "warm", "description": "red"}, {"value": "cold"}]
    question = {"type": "choice", "name": "colour", "instructions": instructions, "choices": choices}
    (tmp_path / "question.json").write_text(json.dumps(question))
    rows = [{"input": row["prompt"], "questions": [question | {"label": row["label"]}]} for row in fixed(toy_data(60))]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    more = ("--question", str(tmp_path / "question.json"))
    assert main(arguments(base_folder, data, tmp_path / "toy", *more)) == 0
    capsys.readouterr()
    assert main(command(tmp_path / "toy", base_folder, data, "--output", str(tmp_path / "again"))) == 0
    assert "the adapter was trained on 6 of the 6 reference rows" in capsys.readouterr().err
    base = open_base(str(base_folder), device="cpu", dtype="float32")
    before, after = (load_adapter(tmp_path / name, base).familiarity for name in ("toy", "again"))
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after.center, before.center, rtol=0.1, atol=0.1)  # means of nearly the same rows
    seen = read_config(tmp_path / "again").training["seen"]
    assert set(parts(seen["familiarity"])) <= set(parts(seen["train"]))


def test_it_takes_the_place_of_the_adapter_and_drops_its_calibration(
    made: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(made / "bare", tmp_path / "toy"))
    common = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32", "--target-risk", "0.2")
    rows = write_jsonl(tmp_path / "rest.jsonl", rows_of(200, 400))
    assert main(["calibrate", str(folder), "--data", str(rows), *common]) == 0
    more = write_jsonl(tmp_path / "more.jsonl", rows_of(400, 500))
    assert main(command(folder, base_folder, more)) == 0
    told = capsys.readouterr().err
    assert "kept the record of calibration attempts (1) in " in told
    assert "removed calibrations of the earlier adapter (1): run blora calibrate again" in told
    assert (len(asked(folder)), read_calibrations(folder)) == (1, ())
    familiarity = read_config(folder).familiarity
    assert familiarity is not None
    assert familiarity.n_reference == 10
    model = opened(folder, base_folder)
    assert all(answer.familiarity is not None and answer.familiarity < 0.3 for answer in model.predict(FOREIGN))


def test_each_row_of_a_calibration_has_its_own_distance(
    made: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []

    def measured(*args: Any, distances: Tensor, **named: Any) -> Calibration:
        given.append(distances)
        return calibrate(*args, distances=distances, **named)

    monkeypatch.setattr("blora.training.calibrate.calibrate", measured)
    rows = [row | {"prompt": row["prompt"] + " again" * (7 * k % 10)} for k, row in enumerate(rows_of(200, 300))]
    data, folder = write_jsonl(tmp_path / "rest.jsonl", rows), shutil.copytree(made / "toy", tmp_path / "toy")
    base, adapter = open_adapter(folder, base_model=str(base_folder), device="cpu", dtype="float32")
    familiarity, examples = adapter.familiarity, examples_for(adapter.config, str(data), split="test")
    assert familiarity is not None
    calibrate_adapter(adapter, base, examples, Goal(target_risk=0.5))
    packed = [labelled.row for labelled in pack_examples(examples, base, adapter.config.prompt)]
    assert sum(row.n_tokens for row in packed) > 2 * CPU_BATCH_TOKENS  # several forward passes, the longest rows first
    alone = torch.cat([distance_alone(base, familiarity, row.prompt) for row in packed])
    torch.testing.assert_close(given[0], alone, rtol=1e-3, atol=1e-3)


def test_its_rows_are_refused_for_a_calibration(
    made: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "more.jsonl", rows_of(400, 600))
    folder = tmp_path / "new"
    assert main(command(made / "bare", base_folder, rows, "--output", str(folder))) == 0
    model = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32")
    for name, start, use in (("some", 400, "familiarity"), ("all", 300, "questions")):
        again = write_jsonl(tmp_path / f"{name}.jsonl", rows_of(start, 580))
        assert main(["calibrate", str(folder), "--data", str(again), "--target-risk", "0.2", *model]) == 1
        assert use in capsys.readouterr().err


@pytest.fixture(scope="module")
def again(made: Path, base_folder: Path) -> Path:
    """The adapter with the familiarity of 40 other rows, and 30 more as its reference in place of 60 validation rows."""
    write_jsonl(made / "reference.jsonl", rows_of(500, 530))
    fitted = write_jsonl(made / "fitted.jsonl", rows_of(400, 440))
    more = ("--validation", str(made / "reference.jsonl"), "--output", str(made / "again"))
    assert main(command(made / "toy", base_folder, fitted, *more)) == 0
    return made / "again"


@pytest.mark.parametrize(
    ("start", "stop", "n_told"),
    [
        pytest.param(600, 620, 20, id="new"),
        pytest.param(400, 440, 0, id="fitted"),
        pytest.param(500, 530, 0, id="reference"),
        pytest.param(100, 160, 60, id="reference once"),
    ],
)
def test_rows_of_neither_its_distance_nor_its_reference_tell_a_tuning_where_guesses_begin(
    start: int,
    stop: int,
    n_told: int,
    again: Path,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Tensor] = []

    def counted(familiarity: Familiarity, probs: Tensor, rows: Sequence[LabelledRow], further: Tensor) -> Familiarity:
        told.append(further)
        return with_guesses(familiarity, probs, rows, further)

    monkeypatch.setattr("blora.training.tune.with_guesses", counted)
    tuned(again, base_folder, tmp_path, rows_of(start, stop))
    assert [len(further) for further in told] == [n_told]


def test_an_adapter_without_a_head_is_refused(
    base_folder: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "lora", open_base(str(base_folder), device="cpu", dtype="float32"))
    rows = write_jsonl(tmp_path / "rows.jsonl", toy_data(20))
    assert main(command(tmp_path / "lora", base_folder, rows)) == 1
    assert "without a decision head, expected one with a head" in capsys.readouterr().err


def test_rows_that_both_fit_and_judge_are_refused(
    made: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--validation", str(made / "rows.jsonl"))
    assert main(command(made / "bare", base_folder, made / "rows.jsonl", *more)) == 1
    assert "also trained on" in capsys.readouterr().err
