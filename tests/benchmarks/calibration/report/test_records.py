"""Reading result files, and refusing the malformed ones by file and field."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.calibration.report.records import read_results
from blora.errors import ConfigError, DataError
from tests.benchmarks.calibration.report.results import Result, exact, made_up, write_results


def read(tmp_path: Path, **results: Result) -> list[Any]:
    return read_results(write_results(tmp_path, results))


def test_every_file_below_the_folder_is_a_run(tmp_path: Path) -> None:
    results = {"b/seed-1": made_up("lora", 1), "b/seed-0": made_up("lora"), "a": made_up("base")}
    runs = read_results(write_results(tmp_path, results))
    assert [run.file for run in runs] == ["a.json", "b/seed-0.json", "b/seed-1.json"]
    assert runs[1].evaluations[0].nll == made_up("lora")["evaluations"][0]["nll"]


def test_fields_that_the_report_does_not_need_may_be_there(tmp_path: Path) -> None:
    [run] = read(tmp_path, a=made_up("lora") | {"note": "", "validation": None})
    assert run.method == "lora"


def test_a_seed_and_a_temperature_may_be_unknown(tmp_path: Path) -> None:
    [run] = read(tmp_path, a=made_up("base") | {"seed": None, "temperature": None})
    assert (run.seed, run.temperature, run.training) == (None, None, None)


def test_a_mean_that_passes_one_by_a_rounding_is_one(tmp_path: Path) -> None:
    read(tmp_path, a=exact("lora", 0, {"arc_easy_test": {"mean_confidence": 1.0000001}}))


def changed(change: Callable[[Result], object]) -> Result:
    result = copy.deepcopy(made_up("lora"))
    change(result)
    return result


MALFORMED = {
    "no method": (lambda r: r.pop("method"), "got no field method, expected one"),
    "no metric": (lambda r: r["evaluations"][1].pop("nll"), "got no field evaluations[1].nll, expected one"),
    "text for a number": (
        lambda r: r["evaluations"][0].update(ece="low"),
        "got evaluations[0].ece = low, expected: a valid number",
    ),
    "number in quotes": (lambda r: r.update(seed="0"), "got seed = 0, expected: a valid integer"),
    "not a number": (
        lambda r: r["evaluations"][0].update(nll=float("nan")),
        "got evaluations[0].nll = nan, expected: a finite number",
    ),
    "not a share": (
        lambda r: r["evaluations"][2].update(accuracy=70.1),
        "got evaluations[2].accuracy = 70.1, expected: less than",
    ),
    "negative": (lambda r: r["training"].update(seconds=-1.0), "got training.seconds = -1.0, expected: greater than 0"),
    "null": (
        lambda r: r["evaluations"][0].update(brier=None),
        "got evaluations[0].brier = None, expected: a valid number",
    ),
    "no evaluations": (lambda r: r.update(evaluations=[]), "got evaluations = [], expected: "),
    "no bins": (
        lambda r: r["evaluations"][0].update(reliability=[]),
        "got evaluations[0].reliability = [], expected: ",
    ),
    "half a bin": (
        lambda r: r["evaluations"][0]["reliability"].__setitem__(3, {"count": 2, "confidence": None, "accuracy": 0.5}),
        "got evaluations[0].reliability[3] = {'count': 2",
    ),
    "a point of three numbers": (
        lambda r: r["evaluations"][0]["risk_coverage"].__setitem__(0, [0.1, 0.2, 0.3]),
        "got evaluations[0].risk_coverage[0] = [0.1, 0.2, 0.3], expected: ",
    ),
    "no name": (lambda r: r.update(label=""), "got label = , expected: "),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_named_with_its_field(tmp_path: Path, case: str) -> None:
    change, message = MALFORMED[case]
    with pytest.raises(DataError, match=re.escape(f"deep/bad.json: {message}")):
        read_results(write_results(tmp_path, {"good": made_up("base"), "deep/bad": changed(change)}))


def test_the_number_of_other_faults_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got no field method, expected one \(and 1 more\); correct the file"):
        read(tmp_path, a=changed(lambda r: (r.pop("method"), r.pop("label"))))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"method": "lora",}'])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=r"bad\.json: got something that is not a result, expected one JSON object"):
        read_results(tmp_path)


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_results_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "note.txt").write_text("")
    with pytest.raises(ConfigError, match=rf"got .*{folder}, expected a folder with \.json result files"):
        read_results(tmp_path / folder)


def test_a_run_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.json: got a second run of LoRA, arc_easy, seed 0 beside a\.json"):
        read(tmp_path, a=made_up("lora"), b=made_up("lora"))


@pytest.mark.parametrize("other", [{"seed": 1}, {"label": "LoRA, rank 4"}, {"trained_on": "obqa"}])
def test_runs_that_differ_in_seed_label_or_training_set_are_not_twice_the_same(tmp_path: Path, other: Result) -> None:
    assert len(read(tmp_path, a=made_up("lora"), b=made_up("lora") | other)) == 2


def test_an_evaluation_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = made_up("lora")["evaluations"]
    with pytest.raises(DataError, match=r"a\.json: got several evaluations of dataset arc_easy_test as trained"):
        read(tmp_path, a=made_up("lora") | {"evaluations": [*twice, twice[0]]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_examples": 19}, "n_examples = 19, expected 20"),
        ({"digest": "sha256:other"}, "digest = sha256:other, expected sha256:arc_easy_test"),
        ({"shift": True}, "shift = True, expected False"),
        ({"reliability": [{"count": 20, "confidence": 0.5, "accuracy": 0.5}]}, "bins of reliability = 1, expected 15"),
    ],
)
def test_results_on_other_rows_are_not_compared(tmp_path: Path, change: Result, message: str) -> None:
    first = exact("base", 0, {"arc_easy_test": {}})
    second = exact("lora", 0, {"arc_easy_test": change})
    with pytest.raises(DataError, match=rf"b\.json: got arc_easy_test with {message} as in a\.json; evaluate all"):
        read(tmp_path, a=first, b=second)
