"""Rows are checked before a base model is loaded, which takes minutes if the model is large."""

from pathlib import Path
from types import ModuleType

import pytest

from blora.errors import BaseModelError, DataError
from blora.training.commands import bayesianize, calibrate, evaluate, familiarize, train, tune
from tests.training.toys import write_jsonl

ADAPTER = Path("examples/triage/adapter")


@pytest.mark.parametrize("command", [bayesianize, calibrate, evaluate, familiarize, train, tune])
def test_a_malformed_row_is_reported_instead_of_a_missing_model(command: ModuleType, tmp_path: Path) -> None:
    rows = [{"prompt": f"Ticket {number}: is it paid?", "label": "billing"} for number in range(80)]
    model = ["--base-model", str(tmp_path / "no-model")]
    if command in (bayesianize, train):
        model += ["--choices", "billing|security", "--output", str(tmp_path / "new")]
    if command is not train:
        model = [str(ADAPTER if command is not bayesianize else tmp_path / "lora"), *model]
    good = write_jsonl(tmp_path / "good.jsonl", rows)
    bad = write_jsonl(tmp_path / "bad.jsonl", [*rows, {"prompt": 3, "label": "billing"}])
    with pytest.raises(DataError, match=r"bad\.jsonl:81: got prompt 3, expected non-empty text"):
        command.main([*model, "--data", str(bad)])
    with pytest.raises(BaseModelError, match="no-model"):
        command.main([*model, "--data", str(good)])


def test_a_choice_that_no_training_row_has_is_told_before_any_model_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"Ticket {n}?", "label": "billing"} for n in range(80)])
    model = ["--base-model", str(tmp_path / "no-model"), "--output", str(tmp_path / "new")]
    with pytest.raises(BaseModelError, match="no-model"):
        train.main([*model, "--data", str(rows), "--choices", "billing|security"])
    assert "no training row has the label 'security' (1 of 2 choices)" in caplog.text
