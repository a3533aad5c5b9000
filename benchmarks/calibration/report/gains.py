"""Tables beside the metrics: gains over plain LoRA and the paper's claim, the cost of methods, and the result files."""

from collections.abc import Iterable, Sequence
from itertools import product
from statistics import fmean

from benchmarks.calibration.report.records import RunRecord
from benchmarks.calibration.report.study import BAYESIAN, LORA, LORA_BEST, MethodRuns, Study, shared, spread
from benchmarks.calibration.report.table import NONE, Table

__all__ = ["cost_table", "paper_table", "provenance_table"]

# What arXiv:2601.21003 claims at most, in per cent.
PAPER_ECE, PAPER_NLL = 84, 76


def paper_table(study: Study) -> Table:
    """Return by how much Bayesian-LoRA lowers LoRA's ECE and NLL in the same treatment, beside the paper's claim."""
    header = ("test set", "against", "treatment", "seeds", "ECE", "ECE reduction (%)", "NLL", "NLL reduction (%)")
    rows = []
    for dataset in study.datasets:
        for entry, lora in product(study.named(BAYESIAN), [*study.named(LORA), *study.named(LORA_BEST)]):
            for treatment in study.treatments:
                ece, nll = (_pairs(entry, lora, dataset, treatment, name) for name in ("ece", "nll"))
                rows.append((dataset, lora.label, treatment, str(len(ece)), *_reduction(ece), *_reduction(nll)))
    rows.append(("the paper", "LoRA", "at most", NONE, NONE, str(PAPER_ECE), NONE, str(PAPER_NLL)))
    return Table(header, rows, n_words=3)


def _pairs(entry: MethodRuns, lora: MethodRuns, dataset: str, treatment: str, name: str) -> list[tuple[float, float]]:
    """Return our metric and LoRA's in the same treatment, by seed."""
    return shared(entry.values(dataset, treatment, name), lora.values(dataset, treatment, name), lora)


def _reduction(pairs: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Return LoRA's mean and ours, and the reduction in per cent of LoRA's."""
    if not pairs:
        return NONE, NONE
    ours, theirs = (fmean(side) for side in zip(*pairs, strict=True))
    return f"{theirs:.3f} → {ours:.3f}", f"{100 * (1 - ours / theirs):.1f}" if theirs else NONE


def cost_table(study: Study) -> Table:
    """Return the table of training seconds, parameters and draws."""
    header = ("method", "trained runs", "training (s)", "parameters", "draws")
    rows = []
    for entry in study.entries:
        seconds = entry.training_seconds()
        total = spread(seconds.values())
        rows.append(
            (
                entry.label,
                str(len(seconds)),
                total.text(1) if total else NONE,
                _distinct(run.training.n_parameters for run in entry.runs if run.training is not None),
                _distinct(run.n_samples for run in entry.runs),
            )
        )
    return Table(header, rows)


def provenance_table(runs: Sequence[RunRecord]) -> Table:
    """Return the table of all result files, with the code and processor of each."""
    header = ("file", "method", "trained on", "base model", "dtype", "revision", "processor", "seed", "draws")
    rows = [
        (
            *(run.file, run.label, run.trained_on, run.base_model, run.dtype, run.revision, run.processor),
            *(str(run.seed), str(run.n_samples)),
        )
        for run in runs
    ]
    return Table(header, rows, n_words=7)


def _distinct(numbers: Iterable[int | None]) -> str:
    """Return the distinct numbers, of which there is one where all runs agree."""
    found = sorted({number for number in numbers if number is not None})
    return ", ".join(f"{number:,}".replace(",", " ") for number in found) or NONE
