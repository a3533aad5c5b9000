"""What Bayesian-LoRA gains over plain LoRA beside what the paper claims, and what methods cost."""

from collections.abc import Iterable, Sequence
from itertools import product
from statistics import fmean

from benchmarks.calibration.report.document import NONE, Cell, Table
from benchmarks.calibration.report.study import BAYESIAN, LORA, LORA_BEST, Entry, Study, shared, spread

__all__ = ["cost_table", "paper_table"]

# What arXiv:2601.21003 claims at most, in per cent.
PAPER_ECE, PAPER_NLL = 84, 76


def paper_table(study: Study) -> Table:
    """What Bayesian-LoRA takes off the ECE and NLL of LoRA in the same treatment, beside what the paper claims."""
    header = ("test set", "against", "treatment", "seeds", "ECE", "ECE reduction (%)", "NLL", "NLL reduction (%)")
    rows: list[Sequence[str]] = []
    for dataset in study.datasets:
        for entry, lora in product(study.named(BAYESIAN), [*study.named(LORA), *study.named(LORA_BEST)]):
            for treatment in study.treatments:
                ece, nll = (_pairs(entry, lora, dataset, treatment, name) for name in ("ece", "nll"))
                rows.append((dataset, lora.label, treatment, str(len(ece)), *_reduction(ece), *_reduction(nll)))
    rows.append(("the paper", "LoRA", "at most", NONE, NONE, str(PAPER_ECE), NONE, str(PAPER_NLL)))
    return Table(header, tuple(tuple(map(Cell, row)) for row in rows), n_words=3)


def _pairs(entry: Entry, lora: Entry, dataset: str, treatment: str, name: str) -> list[tuple[float, float]]:
    """Our metric and that of LoRA in the same treatment, by seed."""
    return shared(entry.values(dataset, treatment, name), lora.values(dataset, treatment, name), lora)


def _reduction(pairs: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """From LoRA's mean to ours, and by how many per cent of LoRA's it is less."""
    if not pairs:
        return NONE, NONE
    ours, theirs = (fmean(side) for side in zip(*pairs, strict=True))
    return f"{theirs:.3f} → {ours:.3f}", f"{100 * (1 - ours / theirs):.1f}" if theirs else NONE


def cost_table(study: Study) -> Table:
    """Seconds of training, parameters and draws."""
    header = ("method", "trained runs", "training (s)", "parameters", "draws")
    rows = []
    for entry in study.entries:
        seconds = entry.training_seconds()
        total = spread(seconds.values())
        cells = (
            entry.label,
            str(len(seconds)),
            total.text(1) if total else NONE,
            _distinct(run.training.n_parameters for run in entry.runs if run.training is not None),
            _distinct(run.n_samples for run in entry.runs),
        )
        rows.append(tuple(map(Cell, cells)))
    return Table(header, tuple(rows))


def _distinct(numbers: Iterable[int | None]) -> str:
    """One number where all runs have the same."""
    found = sorted({number for number in numbers if number is not None})
    return ", ".join(f"{number:,}".replace(",", " ") for number in found) or NONE
