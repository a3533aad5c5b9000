"""Reliability diagrams, side by side: accuracy by confidence above, the share of the answers beneath."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from benchmarks.calibration.report.plots import Looks
from benchmarks.calibration.report.records import AS_TRAINED, RECALIBRATED, TEMPERATURE, BinRecord, EvaluationRecord
from benchmarks.calibration.report.study import BAYESIAN, LORA, Study
from benchmarks.calibration.report.style import INK, MUTED, PAPER, draw

__all__ = ["PooledBin", "calibrated_ece", "expected_ece", "pool", "reliability_plot"]

# Which methods, in which treatment.
SHOWN = (
    ("base", AS_TRAINED),
    *((method, treatment) for method in (LORA, BAYESIAN) for treatment in (AS_TRAINED, TEMPERATURE, RECALIBRATED)),
)
SHORT = {AS_TRAINED: AS_TRAINED, TEMPERATURE: "+ temperature", RECALIBRATED: RECALIBRATED}


@dataclass(frozen=True, slots=True)
class PooledBin:
    """A bin with answers of several seeds; the other numbers of an empty bin mean nothing."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    colour: str
    bins: Sequence[PooledBin]
    ece: float


def reliability_plot(study: Study, dataset: str, styles: Looks, name: str) -> str | None:
    """Return the diagrams of base, LoRA and Bayesian-LoRA, the latter two in every treatment; None without any."""
    panels = []
    for method, treatment in SHOWN:
        for entry in study.named(method)[:1]:
            done = list(entry.evaluations(dataset, treatment).values())
            if done:
                how = SHORT[treatment] if entry.trained else "untrained"
                ece = fmean(e.ece for e in done)
                panels.append(_Panel(f"{entry.label}\n{how}", styles[entry.method].colour, pool(done), ece))
    if not panels:
        return None

    def plot(canvas: Canvas) -> None:
        canvas.set_size_inches(0.9 + 2.1 * len(panels), 4.1)
        above, beneath = canvas.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
        for panel, diagram, histogram in zip(panels, above, beneath, strict=True):
            _diagram(diagram, panel)
            _histogram(histogram, panel.bins, panel.colour)
        above[0].set_ylabel("accuracy")
        beneath[0].set_ylabel("answers (%)")
        canvas.supxlabel("confidence", fontsize=10)

    return draw(name, plot)


def pool(evaluations: Sequence[EvaluationRecord]) -> list[PooledBin]:
    """Return the bins of the answers of all seeds together."""
    return [_joined(bins) for bins in zip(*(e.reliability for e in evaluations), strict=True)]


def calibrated_ece(bins: Sequence[BinRecord]) -> float:
    """Return the ECE to expect where the same answers, with the same confidence, are calibrated perfectly.

    The mean distance of a binomial share from its mean, in the normal approximation.
    """
    total = sum(b.count for b in bins)
    spread = sum(math.sqrt(b.count * b.confidence * (1 - b.confidence)) for b in bins if b.confidence is not None)
    return math.sqrt(2 / math.pi) * spread / total


def expected_ece(study: Study, dataset: str) -> float | None:
    """Return the median `calibrated_ece` of the trained methods on a test set, None where none was evaluated."""
    trained = [entry for entry in study.entries if entry.trained]
    found = [e for entry in trained for t in study.treatments for e in entry.evaluations(dataset, t).values()]
    return median(calibrated_ece(evaluation.reliability) for evaluation in found) if found else None


def _joined(bins: Sequence[BinRecord]) -> PooledBin:
    count = sum(b.count for b in bins)
    if not count:
        return PooledBin(0, 0.0, 0.0)
    confidence = sum(b.count * (b.confidence or 0) for b in bins) / count
    return PooledBin(count, confidence, sum(b.count * (b.accuracy or 0) for b in bins) / count)


def _diagram(axes: Axes, panel: _Panel) -> None:
    """Draw a point for each bin, larger where it holds more answers, and its distance from the diagonal."""
    axes.add_line(Line2D([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3))))
    filled = [b for b in panel.bins if b.count]
    largest = max(b.count for b in filled)
    x = [b.confidence for b in filled]
    y = [b.accuracy for b in filled]
    axes.vlines(x, x, y, color=panel.colour, linewidth=1.4, alpha=0.6, clip_on=False)
    sizes = [14 + 76 * b.count / largest for b in filled]
    axes.scatter(x, y, s=sizes, color=panel.colour, edgecolor=PAPER, linewidth=0.6, zorder=3, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_title(panel.title, loc="left")
    axes.text(0.05, 0.93, f"ECE {panel.ece:.3f}", color=INK, fontsize=10, fontweight="bold", va="top")


def _histogram(axes: Axes, bins: Sequence[PooledBin], colour: str) -> None:
    n_bins, total = len(bins), sum(b.count for b in bins)
    shares = [100 * b.count / total for b in bins]
    axes.bar([(k + 0.5) / n_bins for k in range(n_bins)], shares, width=0.86 / n_bins, color=colour)
    axes.grid(visible=False, axis="x")
