"""Fills the template of a report from a folder of results, and writes its files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.calibration.report.gains import cost_table, paper_table, provenance_table
from benchmarks.calibration.report.plots import Looks, accuracy_nll_plot, ece_plot, risk_coverage_plot
from benchmarks.calibration.report.records import RunRecord, read_results
from benchmarks.calibration.report.reliability import expected_ece, reliability_plot
from benchmarks.calibration.report.study import Study, studies
from benchmarks.calibration.report.style import assign_looks
from benchmarks.calibration.report.tables import auroc_table, metric_table
from benchmarks.calibration.report.verdicts import verdict_table
from benchmarks.markdown import escape

__all__ = ["write_report"]

TITLE = "Calibration of Bayesian-LoRA and its baselines"
TEMPLATES = Path(__file__).parent / "templates"
TABLES = (auroc_table, cost_table, metric_table, paper_table, provenance_table, verdict_table)


def write_report(results: Path, output: Path) -> list[Path]:
    """Write report.md and the pictures, and return their paths.

    The same results make the same bytes.

    Raises:
        ConfigError: if there are no results.
        DataError: if one is malformed or does not compare to the others; nothing is written then.
    """
    texts = _texts(read_results(results))
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8", newline="\n")
    return [output / name for name in texts]


def _texts(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return every file of the report by its name."""
    found = studies(runs)
    looks = assign_looks([entry.method for study in found for entry in study.entries])
    pictures = {name: svg for study in found for name, svg in _pictures(study, looks) if svg is not None}
    context = {"title": TITLE, "studies": found, "runs": runs, "pictures": pictures}
    return {
        "report.md": _render(context),
        **{f"{name}.svg": svg for name, svg in pictures.items()},
    }


def _pictures(study: Study, looks: Looks) -> Iterator[tuple[str, str | None]]:
    plots = {"reliability": reliability_plot, "risk-coverage": risk_coverage_plot, "accuracy-nll": accuracy_nll_plot}
    for dataset in study.in_distribution:
        for kind, plot in plots.items():
            name = _file_name(study.trained_on, dataset, kind)
            yield name, plot(study, dataset, looks, name)
    name = _file_name(study.trained_on, "ece")
    yield name, ece_plot(study, looks, name)


def _render(context: Mapping[str, Any]) -> str:
    """Return the template filled in, with every value escaped for Markdown."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape(str(value))),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update({table.__name__: table for table in TABLES})
    environment.globals.update(expected_ece=expected_ece, file_name=_file_name)
    return environment.get_template("report.jinja").render(context).rstrip() + "\n"


def _file_name(*parts: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", part) for part in parts)
