"""Puts a report together from a folder of results, and writes it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from re import sub
from statistics import median

from benchmarks.calibration.report.document import Block, Cell, Document, Figure, Heading, Paragraph, Table, markdown
from benchmarks.calibration.report.gains import cost_table, paper_table
from benchmarks.calibration.report.page import html
from benchmarks.calibration.report.plots import Looks, accuracy_nll, ece_by_set, risk_coverage
from benchmarks.calibration.report.records import Run, read_results
from benchmarks.calibration.report.reliability import calibrated_ece, reliability
from benchmarks.calibration.report.study import BAYESIAN, Study, studies
from benchmarks.calibration.report.style import looks
from benchmarks.calibration.report.tables import auroc_table, metric_table
from benchmarks.calibration.report.verdicts import verdict_table

__all__ = ["make_document", "write_report"]

TITLE = "Calibration of Bayesian-LoRA and its baselines"


def write_report(results: Path, output: Path) -> list[Path]:
    """Writes report.md, report.html and the pictures, and returns their paths.

    The same results make the same bytes.

    Raises:
        ConfigError: if there are no results.
        DataError: if one is malformed or does not compare to the others; nothing is written then.
    """
    document = make_document(read_results(results))
    texts = {"report.md": markdown(document), "report.html": html(document)}
    texts |= {f"{figure.name}.svg": figure.svg for figure in document.figures}
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8", newline="\n")
    return [output / name for name in texts]


def make_document(runs: Sequence[Run]) -> Document:
    """The report of these runs."""
    found = studies(runs)
    styles = looks([entry.method for study in found for entry in study.entries])
    blocks: list[Block] = [
        Paragraph(
            "A number is the mean over training seeds ± their sample standard deviation; a number alone is that of a "
            "single run. NLL is in nats. With temperature: at the one temperature, fitted on validation questions, "
            "that a result names; recalibrated: at one that depends on L, the mean tokens of a question's choices, and "
            "with a lapse rate, the share of guesses, all three fitted to the same questions. Bold is the best single "
            "model of its column and treatment; ensembles, which cost several models, come last and do not compete."
        )
    ]
    for study in found:
        blocks += _study(study, styles)
    return Document(TITLE, (*blocks, *_provenance(runs)))


def _study(study: Study, styles: Looks) -> Iterator[Block]:
    yield Heading(2, f"Trained on {study.trained_on}")
    missing = study.missing()
    if missing:
        yield Paragraph("Missing: " + " ".join(missing))
    if study.named(BAYESIAN):
        yield Heading(3, "Criteria")
        yield Paragraph(
            "Each is held against the means over the seeds that both sides have. Baselines are the single models that "
            "are not Bayesian-LoRA, in every treatment; the one shown leaves the least room."
        )
        yield verdict_table(study)
        yield Heading(3, "Against plain LoRA")
        yield Paragraph(
            "From plain LoRA to Bayesian-LoRA in the same treatment, over the seeds that both have. The paper, "
            "arXiv:2601.21003, compares with LoRA at its last step, as trained."
        )
        yield paper_table(study)
    for dataset in study.in_distribution:
        yield Heading(3, f"In distribution: {dataset}")
        yield from _metrics(study, dataset)
        yield from _pictures(study, dataset, styles)
    for dataset in study.shifted:
        yield Heading(3, f"Under shift: {dataset}")
        yield from _metrics(study, dataset)
    yield Heading(3, "Calibration error by test set")
    name = _file_name(study.trained_on, "ece")
    caption = "lower is better. Marks are means over seeds, ticks the seeds."
    yield Figure(name, ece_by_set(study, styles, name), "Expected calibration error by test set", caption)
    yield from _auroc(study)
    yield Heading(3, "Cost")
    yield Paragraph(f"{_machines(study.runs)} Wall seconds of runs that may have shared the machine.")
    yield cost_table(study)


def _metrics(study: Study, dataset: str) -> Iterator[Block]:
    trained = [entry for entry in study.entries if entry.trained]
    found = [e for entry in trained for t in study.treatments for e in entry.evaluations(dataset, t).values()]
    floor = ""
    if found:
        ece = median(calibrated_ece(evaluation.reliability) for evaluation in found)
        floor = f" A perfectly calibrated model that is as confident as these would show an ECE of about {ece:.3f}."
    n_examples = next(e.n_examples for run in study.runs for e in run.evaluations if e.dataset == dataset)
    yield Paragraph(f"{n_examples} questions.{floor}")
    yield metric_table(study, dataset)


def _pictures(study: Study, dataset: str, styles: Looks) -> Iterator[Figure]:
    name = _file_name(study.trained_on, dataset, "reliability")
    if (svg := reliability(study, dataset, styles, name)) is not None:
        yield Figure(
            name,
            svg,
            f"Reliability on {dataset}",
            "on the diagonal confidence is accuracy, below it answers are overconfident. "
            "Larger points hold more answers. Bins hold the answers of all seeds; the ECE is the mean over seeds.",
        )
    name = _file_name(study.trained_on, dataset, "risk-coverage")
    yield Figure(
        name,
        risk_coverage(study, dataset, styles, name),
        f"Risk by coverage on {dataset}",
        "as trained, mean over seeds; the error that is left where the least confident "
        "answers are withheld. Lower is better. The axis fits the trained methods.",
    )
    name = _file_name(study.trained_on, dataset, "accuracy-nll")
    yield Figure(
        name,
        accuracy_nll(study, dataset, styles, name),
        f"Accuracy by NLL on {dataset}",
        "better is up and left; the scales of NLL differ. Large marks are means over seeds, small ones the seeds. "
        "An untrained model is left out.",
    )


def _auroc(study: Study) -> Iterator[Block]:
    tables = [(dataset, auroc_table(study, dataset)) for dataset in study.datasets]
    if any(table for _, table in tables):
        yield Heading(3, "What uncertainty finds")
        yield Paragraph(
            "Area under the ROC curve of each uncertainty score, 0.5 is chance. Error: for telling wrong answers from "
            "right ones. OOD: for telling questions of this set from those of the training distribution, among those "
            "that have equally many choices."
        )
    for dataset, table in tables:
        if table is not None:
            yield Heading(4, dataset)
            yield table


def _machines(runs: Sequence[Run]) -> str:
    found = sorted({str(run.machine.get("processor", "unknown")) for run in runs if run.training is not None})
    if not found:
        return "Nothing was trained."
    if len(found) == 1:
        return f"Trained on {found[0]}."
    return f"Trained on several processors, so that times across them compare little: {', '.join(found)}."


def _provenance(runs: Sequence[Run]) -> Iterator[Block]:
    yield Heading(2, "Where the numbers come from")
    header = ("file", "method", "trained on", "base model", "dtype", "revision", "processor", "seed", "draws")
    rows = [
        (
            *(run.file, run.label, run.trained_on, run.base_model, run.dtype, run.revision),
            *(str(run.machine.get("processor", "unknown")), str(run.seed), str(run.n_samples)),
        )
        for run in runs
    ]
    yield Table(header, tuple(tuple(map(Cell, row)) for row in rows), n_words=7)


def _file_name(*parts: str) -> str:
    return "-".join(sub(r"[^A-Za-z0-9_]+", "-", part) for part in parts)
