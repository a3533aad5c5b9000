"""The look of pictures: colours, markers, and settings under which matplotlib repeats every byte."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas

from benchmarks.calibration.report.records import MethodKey
from benchmarks.calibration.report.study import BAYESIAN, LORA

__all__ = ["GRID", "INK", "MUTED", "PAPER", "Look", "assign_looks", "draw"]

PAPER, INK, MUTED, GRID = "#ffffff", "#1f2328", "#656d76", "#d0d7de"
_BAYESIAN, _LORA = "#0072b2", "#d55e00"
# After Okabe and Ito (2008), which people with any colour vision can tell apart, darkened where it is pale on white;
# markers and dashes tell apart what colours might not.
_OTHERS = ("#767c84", "#c08a00", "#009e73", "#b85c95", "#6a51a3", "#8c5a2b", "#3a9bd0", "#4d5358", "#a23b4a")
_MARKERS = ("s", "v", "^", "P", "X", "h", "<", "*", "p")
_DASHES = ((4, 2), (1, 1), (5, 1, 1, 1), (2, 1), (6, 2), (3, 1, 1, 1, 1, 1), (1, 2), (8, 2), (2, 2, 6, 2))

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "text.parse_math": False,  # a $ in a label is a $
}


@dataclass(frozen=True, slots=True)
class Look:
    """The look of one method in every picture."""

    colour: str
    marker: str
    width: float
    dashes: tuple[int, ...] | None
    emphasised: bool


def assign_looks(methods: Sequence[MethodKey]) -> dict[MethodKey, Look]:
    """Return the look of each method: Bayesian-LoRA and plain LoRA bold, the others thin, in the order given."""
    found = {}
    others = 0
    emphasised = {BAYESIAN: Look(_BAYESIAN, "D", 2.6, None, True), LORA: Look(_LORA, "o", 2.6, None, True)}
    for method in dict.fromkeys(methods):
        look = emphasised.pop(method.name, None)
        if look is None:
            i = others % len(_OTHERS)
            look = Look(_OTHERS[i], _MARKERS[i], 1.3, _DASHES[i], False)
            others += 1
        found[method] = look
    return found


def draw(name: str, plot: Callable[[Canvas], None]) -> str:
    """Return the SVG that a plotting function makes on an empty canvas, the same for the same data.

    Args:
        name: prefix of its identifiers, so that several pictures may share a page.
        plot: sets the canvas's size and fills it.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what the machine's matplotlibrc says
        matplotlib.rcParams.update(_SETTINGS | {"svg.hashsalt": name})
        canvas = Canvas(layout="constrained")
        plot(canvas)
        target = io.StringIO()
        canvas.savefig(target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = target.getvalue()
    svg = re.sub(r"\A.*?(?=<svg )", "", svg, flags=re.DOTALL)  # no prolog, whose document type names a remote file
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
