"""The report as files: the same bytes every time, and nothing where the results are malformed."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest

from benchmarks.calibration.__main__ import main
from benchmarks.calibration.report.plots import accuracy_nll_plot, ece_plot, risk_coverage_plot
from benchmarks.calibration.report.records import EvaluationRecord, MethodKey, read_results
from benchmarks.calibration.report.reliability import PooledBin, pool, reliability_plot
from benchmarks.calibration.report.study import studies
from benchmarks.calibration.report.style import GRID, INK, MUTED, PAPER, assign_looks
from benchmarks.calibration.report.write import write_report
from blora.errors import DataError
from tests.benchmarks.calibration.report.results import (
    CHALLENGE,
    EASY,
    METHODS,
    exact,
    made_up,
    numbers,
    study,
    write_results,
)

PICTURES = ("arc_easy-arc_easy_test-reliability", "arc_easy-arc_easy_test-risk-coverage")
PICTURES += ("arc_easy-arc_easy_test-accuracy-nll", "arc_easy-ece")
# Names of SVG's vocabulary, which are not addresses of anything that is loaded.
NAMESPACES = r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"'


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method in two seeds, but for one missing run."""
    runs = {f"{method}-{seed}": made_up(method, seed, n_examples=120) for method in METHODS for seed in (0, 1)}
    del runs["blob-1"]
    return write_results(tmp_path_factory.mktemp("results"), runs)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, results: Path) -> Path:
    folder = tmp_path_factory.mktemp("report") / "deep"
    write_report(results, folder)
    return folder


# Files


def test_the_files_of_a_report(report: Path) -> None:
    names = {"report.md", *(f"{name}.svg" for name in PICTURES)}
    assert {file.name for file in report.iterdir()} == names


def test_the_command_writes_and_names_them(
    tmp_path: Path, results: Path, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(results), "--output", str(tmp_path / "out")]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(str(tmp_path / "out" / f.name) for f in report.iterdir())


def test_another_process_writes_the_same_bytes(tmp_path: Path, results: Path, report: Path) -> None:
    again = tmp_path / "again"
    command = [sys.executable, "-m", "benchmarks.calibration", "report", str(results), "--output", str(again)]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "7", "MPLCONFIGDIR": str(tmp_path)})
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in report.iterdir()}


def test_the_settings_of_the_machine_change_nothing_and_are_left_alone(
    tmp_path: Path, results: Path, report: Path
) -> None:
    with matplotlib.rc_context({"axes.linewidth": 9}):
        write_report(results, tmp_path)
        assert matplotlib.rcParams["axes.linewidth"] == 9
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {f.name: f.read_bytes() for f in report.iterdir()}


def test_the_names_of_files_are_safe(tmp_path: Path) -> None:
    run = made_up("lora", n_examples=20) | {"trained_on": "../owner/set:config"}
    files = write_report(write_results(tmp_path / "in", {"a": run}), tmp_path / "out")
    assert {file.parent for file in files} == {tmp_path / "out"}
    assert "-owner-set-config-ece.svg" in {file.name for file in files}


def test_a_malformed_result_stops_the_report_before_it_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = made_up("lora", n_examples=20) | {"n_samples": 0}
    folder = write_results(tmp_path / "in", {"good": made_up("base", n_examples=20), "broken": broken})
    assert main(["report", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "broken.json: got n_samples = 0, expected: greater than or equal to 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError):
        write_report(folder, tmp_path / "out")


# Markdown


def test_the_markdown_shows_every_picture_beside_it(report: Path) -> None:
    text = (report / "report.md").read_text()
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(shown) == sorted(f"{name}.svg" for name in PICTURES)
    assert all((report / name).exists() for name in shown)


def test_the_markdown_has_every_section_and_names_what_is_missing(report: Path) -> None:
    text = (report / "report.md").read_text()
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith(("## ", "### "))]
    assert headings == [
        "Trained on arc_easy",
        "Criteria",
        "Against plain LoRA",
        "In distribution: arc_easy_test",
        "Under shift: arc_challenge_test",
        "Under shift: obqa_test",
        "Calibration error by test set",
        "What uncertainty finds",
        "Cost",
        "Where the numbers come from",
    ]
    assert "Missing: BLoB has no run of seed 1." in text
    assert "| BLoB | as trained | 1 of 2, without 1 | 1 |" in text


def test_rows_of_a_table_have_as_many_cells_as_its_header(report: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", (report / "report.md").read_text(), flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_label_has_no_meaning_in_markdown(tmp_path: Path) -> None:
    run = made_up("lora", n_examples=20) | {"label": "a|b *c* <i> $x$ & d_e"}
    files = write_report(write_results(tmp_path / "in", {"a": run}), tmp_path / "out")
    assert r"| a\|b \*c\* \<i\> $x$ & d_e |" in files[0].read_text()


def test_several_processors_are_named(tmp_path: Path) -> None:
    other = exact("bayesian", 0, {EASY: {}}, machine={"processor": "Other CPU"})
    files = write_report(
        write_results(tmp_path / "in", {"a": exact("lora", 0, {EASY: {}}), "b": other}), tmp_path / "out"
    )
    assert (
        "Trained on several processors, so that times across them compare little: Other CPU, Toy CPU."
        in files[0].read_text()
    )


# Pictures


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_svg_in_the_colours_of_all_pictures(report: Path, results: Path, name: str) -> None:
    text = (report / f"{name}.svg").read_text()
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "://" not in re.sub(NAMESPACES, "", text)
    entries = [entry for found in studies(read_results(results)) for entry in found.entries]
    looks = assign_looks([entry.method for entry in entries]).values()
    assert set(re.findall(r"#[0-9a-f]{6}\b", text)) <= {PAPER, INK, MUTED, GRID, *(look.colour for look in looks)}


def test_ours_and_lora_look_the_same_in_every_report_and_stand_out() -> None:
    ours, lora, tfb, blob = (
        MethodKey(name=name, label=name, single_model=True) for name in ("bayesian", "lora", "tfb", "blob")
    )
    few, many = assign_looks([ours, lora]), assign_looks([blob, lora, tfb, blob, ours])
    assert (few[ours], few[lora]) == (many[ours], many[lora])
    assert [method.name for method, look in many.items() if look.emphasised] == ["lora", "bayesian"]
    assert len({(look.colour, look.marker) for look in many.values()}) == 4


def test_bins_of_several_seeds_are_pooled_by_their_counts() -> None:
    def evaluation(*bins: tuple[int, float | None, float | None]) -> EvaluationRecord:
        named = [dict(zip(("count", "confidence", "accuracy"), values, strict=True)) for values in bins]
        values = made_up("lora", n_examples=20)["evaluations"][0] | {"reliability": named}
        return EvaluationRecord.model_validate_json(json.dumps(values))

    first = evaluation((0, None, None), (3, 0.6, 1.0), (0, None, None))
    second = evaluation((0, None, None), (1, 0.8, 0.0), (2, 0.9, 0.5))
    pooled = pool([first, second])
    assert pooled[0] == PooledBin(0, 0.0, 0.0)
    assert pooled[1] == PooledBin(4, pytest.approx(0.65), 0.75)
    assert pooled[2] == PooledBin(2, 0.9, 0.5)


def test_a_study_of_which_much_is_missing_is_drawn(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        exact("base", None, {}, {EASY: {}}),
        exact("lora", 0, {CHALLENGE: {}}),
        exact("tfb", 1, {EASY: numbers(ece=0.0), CHALLENGE: {}}),
    )
    styles = assign_looks([entry.method for entry in found.entries])
    assert reliability_plot(found, EASY, styles, "a") is None
    for svg in (
        reliability_plot(found, CHALLENGE, styles, "a"),
        risk_coverage_plot(found, EASY, styles, "b"),
        accuracy_nll_plot(found, EASY, styles, "c"),
        ece_plot(found, styles, "d"),
    ):
        assert ET.fromstring(svg).tag.endswith("svg")


@pytest.mark.parametrize("n_sets", [1, 2, 4, 7])
def test_there_is_a_panel_for_every_test_set(tmp_path: Path, n_sets: int) -> None:
    template = made_up("lora", n_examples=20)
    sets = [{**template["evaluations"][0], "dataset": f"set{i}", "shift": i > 0} for i in range(n_sets)]
    found = study(tmp_path, template | {"evaluations": sets})
    svg = ece_plot(found, assign_looks([entry.method for entry in found.entries]), "name")
    assert all(f"<!-- set{i} -->" in svg for i in range(n_sets))


def test_the_untrained_model_alone_makes_a_report(tmp_path: Path) -> None:
    files = write_report(write_results(tmp_path / "in", {"a": made_up("base", n_examples=20)}), tmp_path / "out")
    text = files[0].read_text()
    assert "Criteria" not in text
    assert "Nothing was trained." in text
