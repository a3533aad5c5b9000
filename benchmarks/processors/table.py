"""Tables of what the processor changes, and the bounds that the documents and the tests take from them."""

import json
from collections.abc import Callable
from itertools import groupby
from typing import Any

from benchmarks.markdown import markdown_table, on_machine
from benchmarks.server_process import ROOT

__all__ = ["REFERENCE", "RESULTS", "between_dtypes", "bounds", "certainty_distance", "distance", "full"]

RESULTS = ROOT / "benchmarks" / "results" / "processors"
REFERENCE = RESULTS / "reference.json"

Row = dict[str, Any]


def _rows() -> list[Row]:
    """Return the rows of every machine's result file, each with its processor."""
    files = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json")) if file != REFERENCE]
    return [row | {"processor": result["machine"]["processor"]} for result in files for row in result["rows"]]


def distance(dtype: str) -> float:
    """Return how far a probability of the demo was seen to move on any processor, noisy ones among them."""
    return max(row["moved_from_reference"] for row in _rows() if row["dtype"] == dtype)


def certainty_distance(dtype: str) -> float:
    """Return how far the score of the demo's policy was seen to move on any processor, noisy ones among them."""
    return max(row["certainty_moved"] for row in _rows() if row["dtype"] == dtype)


def between_dtypes() -> float:
    """Return how far a probability of the reference lies in bfloat16 from where it lies in float32."""
    kept = json.loads(REFERENCE.read_text())["probabilities"]
    pairs = zip(kept["float32"], kept["bfloat16"], strict=True)
    return max(abs(p - q) for first, second in pairs for p, q in zip(first, second, strict=True))


def full(name: str) -> str:
    """Return the table of every processor and variant."""
    header = ["processor", "as", "dtype", "tickets", *_COLUMNS]
    rows = [
        [
            row["processor"],
            row["variant"],
            row["dtype"],
            str(row["n_tickets"]),
            *(show([row]) for show in _COLUMNS.values()),
        ]
        for row in sorted(_rows(), key=lambda row: (row["dtype"], row["processor"]))
    ]
    return f"{markdown_table(header, rows)}\n\n{_about()}"


def bounds(name: str) -> str:
    """Return the table of the largest movement by dtype, on real processors and on noisy ones."""

    def kind(row: Row) -> tuple[str, bool]:
        return row["dtype"], row["variant"].startswith("noisy")

    header = ["dtype", "processors", "tickets", *_COLUMNS]
    rows = []
    for (dtype, noisy), group in groupby(sorted(_rows(), key=kind, reverse=True), key=kind):
        found = list(group)
        where = "a noisy one, three seeds" if noisy else ", ".join(sorted({row["processor"] for row in found}))
        variants = "" if noisy or len(found) == 1 else f" as {len(found)} variants"
        n_tickets = str(max(row["n_tickets"] for row in found))
        rows.append([dtype, f"{where}{variants}", n_tickets, *(show(found) for show in _COLUMNS.values())])
    between = f"Between bfloat16 and float32 a probability moves by up to {between_dtypes():.1g}."
    return f"{markdown_table(header, rows)}\n\n{between}"


def _largest(name: str) -> Callable[[list[Row]], str]:
    return lambda rows: f"{max(row[name] for row in rows):.1g}"


def _changed(rows: list[Row]) -> str:
    n_changed = max(row["decisions_changed"] for row in rows)
    if not n_changed:
        return "none"
    of = next(row["n_tickets"] for row in rows if row["decisions_changed"] == n_changed)
    return f"{n_changed} of {of}, at most {max(row['furthest_changed'] for row in rows):.1g} from the threshold"


_COLUMNS: dict[str, Callable[[list[Row]], str]] = {
    "moved by the batch": _largest("moved_by_batch"),
    "moved from the reference": _largest("moved_from_reference"),
    "decisions changed": _changed,
}


def _about() -> str:
    kept = json.loads(REFERENCE.read_text())
    machine = kept["machine"]
    return (
        "Largest movement of any probability of the demo's test tickets, all draws each: asked alone against asked in "
        "one batch, and both against the reference, the same tickets asked alone in the same dtype on "
        f"{on_machine(machine)}, torch {machine['torch']}. `{kept['command']}`."
    )
