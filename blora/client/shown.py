"""Display of a prediction in a Python session: one line of text, or a small table in a notebook."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from blora.client.cautions import caution

if TYPE_CHECKING:
    from blora.client.answers import ChoiceProbability, Prediction

__all__ = ["html_of", "html_table", "prediction_line"]

BAR = '<div style="background:#4c78a8;height:0.7em;width:{:.0f}px"></div>'
BAR_PX = 120
# Choices in the line of text.
MOST_CHOICES = 3


def prediction_line(prediction: "Prediction") -> str:
    """Return the answer, or why there is none, the most probable choices, and the names of warnings."""
    ranked = _ranked(prediction)
    choices = ", ".join(f"{row.choice} {row.probability:.2f}" for row in ranked[:MOST_CHOICES])
    more = ", ..." if len(ranked) > MOST_CHOICES else ""
    said = f"abstained: {', '.join(_reasons(prediction))}" if prediction.answer is None else repr(prediction.answer)
    warned = f"; warnings: {', '.join(prediction.warnings)}" if prediction.warnings else ""
    return f"Prediction({said}; {choices}{more}{warned})"


def html_of(prediction: "Prediction") -> str:
    """Return the same with every choice, a bar for its probability, and warnings in words, as HTML."""
    said = "abstained" if prediction.answer is None else escape(prediction.answer)
    warned = [f"warning: {caution(warning)}" for warning in prediction.warnings]
    because = "".join(f"<br>{escape(reason)}" for reason in [*_reasons(prediction), *warned])
    rows = [
        (escape(row.choice), f"{row.probability:.3f} ± {row.std:.3f}", BAR.format(BAR_PX * row.probability))
        for row in _ranked(prediction)
    ]
    return f"<div><b>{said}</b>{because}</div>{html_table(rows)}"


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _ranked(prediction: "Prediction") -> "list[ChoiceProbability]":
    return sorted(prediction.probabilities, key=lambda row: -row.probability)


def _reasons(prediction: "Prediction") -> list[str]:
    return [f"{r.reason} ({r.value:.3f}, threshold {r.threshold:.3f})" for r in prediction.abstain_reasons]
