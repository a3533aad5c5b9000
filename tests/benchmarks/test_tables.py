"""The tables of the documents, from results made up for the purpose."""

import json
from pathlib import Path

import pytest

from benchmarks import tables


def test_the_times_of_training_name_the_validation_tickets_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [file] = (tables.RESULTS / "head_training").iterdir()
    result = json.loads(file.read_text())
    result["sizes"] = [
        {"n_rows": n_rows, "n_validation": 468, "answered_s": seconds, "dtype": "float32"}
        for n_rows, seconds in ((250, 55.2), (3512, 261.0))
    ]
    (tmp_path / "head_training").mkdir()
    (tmp_path / "head_training" / file.name).write_text(json.dumps(result))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert (
        tables.render("<!-- table head_training -->\n<!-- end -->")
        .splitlines()[1]
        .startswith(
            "From labelled tickets to the first answer of a server: 250 training and 468 validation tickets in 55 s; "
            "3,512 training and 468 validation tickets in 261 s ("
        )
    )
