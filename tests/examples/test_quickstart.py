"""The notebook, its cells run in order in a copy of the examples' folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blora.adapter.calibration_file import CALIBRATION_FILE

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
MOST_LINES = 25


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_code_is_short() -> None:
    lines = [line for cell in cells() for line in cell.splitlines() if line.strip()]
    assert len(lines) < MOST_LINES


@pytest.mark.model
def test_the_cells_load_predict_train_calibrate_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("svg")
    monkeypatch.setattr(pyplot, "show", lambda: None)
    shutil.copytree(EXAMPLES / "triage", tmp_path / "triage")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells():
        exec(cell, names)
    model, calibration = names["model"], names["calibration"]
    assert len(names["tickets"]) == 60
    assert model.calibration == calibration
    assert model.choices == tuple(sorted(names["demo"].choices))
    assert (tmp_path / "quickstart-adapter" / CALIBRATION_FILE).is_file()
    [axes] = pyplot.gcf().axes
    assert len(axes.lines) == 2
    pyplot.close("all")
