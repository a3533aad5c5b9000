"""What a method gains over plain LoRA, and what it costs: the tables beside the paper's claims."""

from collections.abc import Iterable, Sequence
from statistics import fmean

from training.report.document import NONE, Cell, Table
from training.report.study import BAYESIAN, TREATMENTS, Entry, Study, shared, spread

__all__ = ["cost_table", "paper_table", "time_ratios"]

# What arXiv:2601.21003 claims at most, in per cent.
PAPER_ECE, PAPER_NLL = 84, 76


def paper_table(study: Study) -> Table:
    """What Bayesian-LoRA takes off plain LoRA's ECE and NLL, beside what the paper claims at most."""
    header = ("test set", "method", "treatment", "seeds", "ECE", "ECE reduction (%)", "NLL", "NLL reduction (%)")
    rows: list[Sequence[str]] = []
    for dataset in study.datasets:
        for entry in study.named(BAYESIAN):
            for tempered, treatment in TREATMENTS.items():
                ece, nll = (_against_lora(study, entry, dataset, tempered, name) for name in ("ece", "nll"))
                rows.append((dataset, entry.label, treatment, str(len(ece)), *_reduction(ece), *_reduction(nll)))
    rows.append(("the paper", "Bayesian-LoRA", "at most", NONE, NONE, str(PAPER_ECE), NONE, str(PAPER_NLL)))
    return Table(header, tuple(tuple(map(Cell, row)) for row in rows), n_words=3)


def _against_lora(study: Study, entry: Entry, dataset: str, tempered: bool, name: str) -> list[tuple[float, float]]:
    """Our metric and that of plain LoRA as trained, by seed."""
    if study.lora is None:
        return []
    return shared(entry.values(dataset, tempered, name), study.lora.values(dataset, False, name), study.lora)


def _reduction(pairs: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """From LoRA's mean to ours, and by how many per cent of LoRA's it is less."""
    if not pairs:
        return NONE, NONE
    ours, theirs = (fmean(side) for side in zip(*pairs, strict=True))
    return f"{theirs:.3f} → {ours:.3f}", f"{100 * (1 - ours / theirs):.1f}" if theirs else NONE


def cost_table(study: Study) -> Table:
    """Seconds of training, their ratio to LoRA's of the same seed, parameters and draws."""
    header = ("method", "trained runs", "training (s)", "ratio to LoRA", "parameters", "draws")
    rows = []
    for entry in study.entries:
        seconds = entry.training_seconds()
        total, ratio = spread(seconds.values()), spread(time_ratios(study, entry))
        cells = (
            entry.label,
            str(len(seconds)),
            total.text(1) if total else NONE,
            ratio.text(2) if ratio else NONE,
            _distinct(run.training.n_parameters for run in entry.runs if run.training is not None),
            _distinct(run.n_samples for run in entry.runs),
        )
        rows.append(tuple(map(Cell, cells)))
    return Table(header, tuple(rows))


def time_ratios(study: Study, entry: Entry) -> list[float]:
    """Seconds of training over those of plain LoRA of the same seed, for every seed that both have."""
    if study.lora is None:
        return []
    lora = study.lora.training_seconds()
    return [seconds / lora[seed] for seed, seconds in entry.training_seconds().items() if seed in lora]


def _distinct(numbers: Iterable[int | None]) -> str:
    """One number where all runs have the same."""
    found = sorted({number for number in numbers if number is not None})
    return ", ".join(f"{number:,}".replace(",", " ") for number in found) or NONE
