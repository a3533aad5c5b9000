"""Tables of all methods on one test set: metrics, and the AUROC of their uncertainty scores."""

from collections.abc import Callable, Sequence
from statistics import fmean

from benchmarks.calibration.report.records import AS_TRAINED, RECALIBRATED, EvaluationRecord
from benchmarks.calibration.report.study import MethodRuns, Spread, Study, spread
from benchmarks.calibration.report.table import NONE, Best, Table

__all__ = ["auroc_table", "metric_table", "missing"]

# Name, heading, and whether higher is better.
_METRICS = (
    ("accuracy", "accuracy", True),
    ("nll", "NLL", False),
    ("ece", "ECE", False),
    ("brier", "Brier", False),
    ("aurc", "AURC", False),
)
_SCORES = {
    "confidence": "confidence",
    "predictive_entropy": "predictive entropy",
    "mutual_information": "mutual information",
}

_Get = Callable[[EvaluationRecord], float | None]
_Column = tuple[str, _Get, bool]


def metric_table(study: Study, dataset: str) -> Table:
    """Return accuracy, NLL, ECE, Brier and AURC of every method on a test set, in every treatment."""
    columns = [(heading, _metric(name), higher) for name, heading, higher in _METRICS]
    return _compared(study, dataset, columns, temperature=True)


def auroc_table(study: Study, dataset: str) -> Table | None:
    """Return the AUROC of each uncertainty score for errors and for shifted questions; None if there is none."""
    columns: list[_Column] = []
    done = [e for entry in study.entries for t in study.treatments for e in entry.evaluations(dataset, t).values()]
    for field, heading in (("auroc_error", "error"), ("auroc_ood", "OOD")):
        known = {name for e in done for name, value in (getattr(e, field) or {}).items() if value is not None}
        for name in [*_SCORES, *sorted(known - set(_SCORES))]:
            if name in known:
                columns.append((f"{heading} by {_SCORES.get(name, name)}", _score(field, name), True))
    return _compared(study, dataset, columns, temperature=False) if columns else None


def missing(study: Study, dataset: str) -> dict[str, list[str]]:
    """Return, for each treatment of the metric table, the single models that have no row in it."""
    single = [entry for entry in study.entries if entry.method.single_model]
    absent = {t: [entry.label for entry in single if not entry.evaluations(dataset, t)] for t in study.treatments}
    return {treatment: labels for treatment, labels in absent.items() if labels}


def _metric(name: str) -> _Get:
    def get(evaluation: EvaluationRecord) -> float:
        return float(getattr(evaluation, name))

    return get


def _score(field: str, name: str) -> _Get:
    def get(evaluation: EvaluationRecord) -> float | None:
        scores: dict[str, float | None] = getattr(evaluation, field) or {}
        return scores.get(name)

    return get


def _compared(study: Study, dataset: str, columns: Sequence[_Column], *, temperature: bool) -> Table:
    """Return methods by columns, one treatment after the other, the best single model of each in bold.

    A method of which nothing is known in a treatment has no row there, and then nothing is marked best in it.
    """
    shown = ["temperature"] if temperature else []
    header = ("method", "treatment", "seeds", *shown, *(heading for heading, _, _ in columns))
    rows = []
    incomplete = missing(study, dataset)
    for treatment in study.treatments:
        numbers = [[_over_seeds(entry, dataset, treatment, get) for _, get, _ in columns] for entry in study.entries]
        best = [
            _best(study, column, higher) if treatment not in incomplete else None
            for column, (_, _, higher) in zip(zip(*numbers, strict=True), columns, strict=True)
        ]
        for entry, values in zip(study.entries, numbers, strict=True):
            if not any(values):
                continue
            words = [entry.label, treatment, _seeds(study, entry, dataset, treatment)]
            if temperature:
                words.append(_temperature(entry, treatment))
            figures = [_figure(entry, value, mark) for value, mark in zip(values, best, strict=True)]
            rows.append((*words, *figures))
    return Table(header, rows, n_words=3)


def _over_seeds(entry: MethodRuns, dataset: str, treatment: str, get: _Get) -> Spread | None:
    found = [get(evaluation) for evaluation in entry.evaluations(dataset, treatment).values()]
    return spread(value for value in found if value is not None)


def _best(study: Study, column: Sequence[Spread | None], higher: bool) -> str | None:
    """Return the best mean of a single model as it is shown, for equal texts are marked equally."""
    found = zip(study.entries, column, strict=True)
    means = [value.mean for entry, value in found if value is not None and entry.method.single_model]
    return f"{max(means) if higher else min(means):.3f}" if means else None


def _figure(entry: MethodRuns, value: Spread | None, best: str | None) -> str:
    if value is None:
        return NONE
    is_best = entry.method.single_model and f"{value.mean:.3f}" == best
    return Best(value.text()) if is_best else value.text()


def _seeds(study: Study, entry: MethodRuns, dataset: str, treatment: str) -> str:
    """Return the number of seeds behind a row, and those of the study that it lacks."""
    done = entry.evaluations(dataset, treatment)
    if not entry.trained:
        return "untrained"
    absent = [str(seed) for seed in study.seeds if seed not in done] if entry.seeded else []
    return f"{len(done)} of {len(study.seeds)}, without {', '.join(absent)}" if absent else str(len(done))


def _temperature(entry: MethodRuns, treatment: str) -> str:
    """Return the divisor of log-probabilities; L is the mean length of a question's choices, in tokens."""
    if treatment == AS_TRAINED:
        return "1"
    if treatment == RECALIBRATED:
        found = [run.recalibration for run in entry.runs if run.recalibration is not None]
        if not found:
            return NONE
        temperature, power, lapse = (
            fmean(getattr(f, name) for f in found) for name in ("temperature", "power", "lapse")
        )
        return f"{temperature:.2f} L^{power:.2f}, lapse {lapse:.2f}"
    single = spread(run.temperature for run in entry.runs if run.temperature is not None)
    return single.text(2) if single else NONE
