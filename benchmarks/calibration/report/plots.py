"""The plots that compare all methods of a study: risk by coverage, accuracy by NLL, ECE by test set."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.typing import FillStyleType
from numpy.typing import ArrayLike, NDArray

from benchmarks.calibration.report.records import AS_TRAINED, RECALIBRATED, TEMPERATURE, MethodKey
from benchmarks.calibration.report.study import MethodRuns, Study
from benchmarks.calibration.report.style import INK, PAPER, Look, draw

__all__ = ["accuracy_nll_plot", "ece_plot", "risk_coverage_plot"]

Looks = Mapping[MethodKey, Look]

MIN_COVERAGE = 0.05  # below it the error of a few answers jumps about
N_COLUMNS = 3
FILLS: Mapping[str, FillStyleType] = {AS_TRAINED: "full", TEMPERATURE: "none", RECALIBRATED: "left"}


def risk_coverage_plot(study: Study, dataset: str, styles: Looks, name: str) -> str:
    """Draw the error among the kept answers by the share that is kept: every method as trained, mean over seeds."""
    grid = np.linspace(MIN_COVERAGE, 1, 96)
    curves = [(entry, _mean_risk(entry, dataset, grid)) for entry in study.entries]
    known = [(entry, risk) for entry, risk in curves if risk is not None]
    # An untrained model errs so much more that its curve would flatten all others.
    highest = max((float(risk.max()) for entry, risk in known if entry.trained), default=1.0)

    def plot(canvas: Canvas) -> None:
        canvas.set_size_inches(8.4, 4.4)
        axes = canvas.subplots()
        for entry, risk in known:
            axes.add_line(_line(styles[entry.method], 100 * grid, 100 * risk))
        axes.set_xlim(100 * MIN_COVERAGE, 100)
        axes.set_ylim(0, 105 * highest or 1)
        axes.set_xlabel("coverage: share of answers kept, most confident first (%)")
        axes.set_ylabel("error among the answers kept (%)")
        handles = [_line(styles[entry.method], label=entry.label) for entry, _ in known]
        canvas.legend(handles=handles, loc="outside right upper", handlelength=3.2)

    return draw(name, plot)


def _mean_risk(entry: MethodRuns, dataset: str, grid: NDArray[np.float64]) -> NDArray[np.float64] | None:
    curves = [np.array(e.risk_coverage) for e in entry.evaluations(dataset, AS_TRAINED).values()]
    if not curves:
        return None
    mean: NDArray[np.float64] = np.mean([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)
    return mean


def _line(look: Look, x: ArrayLike = (), y: ArrayLike = (), label: str = "") -> Line2D:
    line = Line2D(x, y, color=look.colour, linewidth=look.width, zorder=3 if look.emphasised else 2, label=label)
    if look.dashes:
        line.set_dashes(look.dashes)
    return line


def accuracy_nll_plot(study: Study, dataset: str, styles: Looks, name: str) -> str:
    """Draw accuracy by NLL of the trained methods, in a panel for each treatment; large marks are means over seeds."""
    # An untrained model is so far off that it would press all others together.
    known = [e for e in study.entries if e.trained and any(e.evaluations(dataset, t) for t in study.treatments)]

    def plot(canvas: Canvas) -> None:
        panels = len(study.treatments)
        canvas.set_size_inches(2.6 + 3.5 * panels, 4.2)
        for axes, treatment in zip(canvas.subplots(1, panels, sharey=True), study.treatments, strict=True):
            for entry in known:
                look = styles[entry.method]
                nll = [*entry.values(dataset, treatment, "nll").values()]
                accuracy = [100 * value for value in entry.values(dataset, treatment, "accuracy").values()]
                if nll:
                    axes.add_line(_marks(look, nll, accuracy, scale=0.5))
                    axes.add_line(_marks(look, [fmean(nll)], [fmean(accuracy)]))
            axes.margins(0.1)
            axes.autoscale_view()
            axes.set_title(treatment, loc="left")
            axes.set_xlabel("negative log-likelihood (nats)")
            axes.locator_params(axis="x", nbins=5)
            axes.tick_params(axis="y", labelleft=True)
        canvas.axes[0].set_ylabel("accuracy (%)")
        handles = [_marks(styles[entry.method], label=entry.label) for entry in known]
        canvas.legend(handles=handles, loc="outside right upper")

    return draw(name, plot)


def ece_plot(study: Study, styles: Looks, name: str) -> str:
    """Draw the ECE of every method in every treatment, in a panel for each test set, with a tick for each seed."""
    sets = study.datasets
    n_columns = min(N_COLUMNS, len(sets))
    n_rows = -(-len(sets) // n_columns)

    def plot(canvas: Canvas) -> None:
        canvas.set_size_inches(2.4 + 2.7 * n_columns, (1.0 + 0.3 * len(study.entries)) * n_rows + 0.5)
        panels = list(canvas.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).flat)
        for axes, dataset in zip(panels, sets, strict=False):
            standing = "shifted" if dataset in study.shifted else "in distribution"
            axes.set_title(f"{dataset}\n{standing}", loc="left")
            for height, entry in enumerate(study.entries):
                _ece_row(axes, study.treatments, entry, dataset, styles[entry.method], height)
            axes.set_xlabel("expected calibration error")
            axes.tick_params(axis="x", labelbottom=True)
            axes.tick_params(axis="y", length=0)
        for axes in panels[len(sets) :]:
            axes.set_axis_off()
        panels[0].set_xlim(left=0)
        panels[0].set_yticks(range(len(study.entries)), [entry.label for entry in study.entries])
        panels[0].set_ylim(len(study.entries) - 0.5, -0.5)  # the first method on top
        for axes in panels[::n_columns]:
            for label, entry in zip(axes.get_yticklabels(), study.entries, strict=True):
                label.set_fontweight("bold" if styles[entry.method].emphasised else "normal")
        canvas.legend(handles=_treatments(study.treatments), loc="outside upper left", ncols=3)

    return draw(name, plot)


def _ece_row(axes: Axes, treatments: Sequence[str], entry: MethodRuns, dataset: str, look: Look, height: int) -> None:
    means = []
    for treatment in treatments:
        values = [*entry.values(dataset, treatment, "ece").values()]
        if values:
            means.append(fmean(values))
            if len(values) > 1:
                seeds = Line2D(values, [height] * len(values), color=look.colour, linestyle="none", marker="|")
                seeds.set_markersize(11)
                axes.add_line(seeds)
            axes.add_line(_marks(look, means[-1:], [height], fill=FILLS[treatment]))
    axes.add_line(Line2D(means, [height] * len(means), color=look.colour, linewidth=0.8, zorder=1.5))
    axes.autoscale_view()


def _marks(
    look: Look,
    x: Sequence[float] = (),
    y: Sequence[float] = (),
    *,
    scale: float = 1.0,
    fill: FillStyleType = "full",
    label: str = "",
) -> Line2D:
    """Return unconnected marks; small ones are without a rim, and beneath."""
    return Line2D(
        x,
        y,
        linestyle="none",
        marker=look.marker,
        markersize=scale * (9.5 if look.emphasised else 7.5),
        fillstyle="left" if fill == "left" else "full",
        markerfacecolor=PAPER if fill == "none" else look.colour,
        markerfacecoloralt=PAPER,
        markeredgecolor=PAPER if fill == "full" else look.colour,
        markeredgewidth=(0.7 if fill == "full" else 1.4) * (scale == 1),
        zorder=(4 if look.emphasised else 3) - (scale < 1),
        label=label,
    )


def _treatments(treatments: Sequence[str]) -> list[Line2D]:
    """Return the legend of filled, hollow and half filled marks."""
    look = Look(INK, "o", 1.0, None, False)
    return [_marks(look, fill=FILLS[treatment], label=treatment) for treatment in treatments]
