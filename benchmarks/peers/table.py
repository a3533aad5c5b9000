"""The peers' tables for README.md, docs/heads.md and docs/decisions.md."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.markdown import Columns, record_table
from benchmarks.peers.sets import QUESTIONS, SETS

__all__ = ["headline", "peers", "peers_of_questions"]

Row = dict[str, Any]


def _figure(name: str, form: str = ".3f") -> Callable[[Row], str]:
    """Return a column of a figure, with its spread over seeds if there is one."""

    def column(row: Row) -> str:
        value, spread = row[name], (row["spread"] or {}).get(name)
        return "–" if value is None else f"{value:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")

    return column


def _accuracy(row: Row) -> str:
    shown = _figure("accuracy")(row)
    return shown if row["accuracy_clear"] is None else f"{shown} ({row['accuracy_clear']:.3f})"


def _foreign(row: Row) -> str:
    if row["foreign_confidence"] is None:
        return "–"
    found = (row.get(f"foreign_{name}") for name in ("confidence", "mutual_information", "familiarity"))
    return " / ".join("–" if value is None else f"{value:.3f}" for value in found)


COLUMNS: Columns = {
    "method": "{method}",
    "accuracy (clear)": _accuracy,
    "NLL": _figure("nll"),
    "ECE": _figure("ece"),
    "Brier": _figure("brier"),
    "AURC": _figure("aurc"),
    "answered at proved 5 %": "{answered_at_5:.2f} ± {answered_at_5_std:.2f}",
    "at proved 10 %": "{answered_at_10:.2f} ± {answered_at_10_std:.2f}",
    "foreign AUROC": _foreign,
}

FOREIGN = (
    "Foreign AUROC: of 1 - confidence / of mutual information / of the distance behind the familiarity, for telling "
    "foreign rows from test rows. "
)
# The methods whose rows have seeds if several LoRAs were trained.
ABOVE_LORA = ("head above a LoRA, posterior mean", "head above a LoRA, posterior mean, read twice")
# The sets of the headline by their titles, and the methods that it shows.
TITLES = {"demo": "demo", "banking77": "BANKING77", "clinc150": "CLINC150", "arc_easy": "ARC-Easy", "boolq": "BoolQ"}
HEADLINE = (
    *("base model's log-probabilities", "TF-IDF regression", "regression on frozen states"),
    *("regression on frozen states, read twice", "contrast on frozen states", "head, posterior mean"),
    *("head, 64 draws", "head, 64 draws, read twice"),
    *("head above a LoRA, 64 draws", "head above a LoRA, 64 draws, read twice"),
)
ANYJEV = "AnyJev on {n_test} rows"
FLOOR = "The floor of an ECE is its mean if the probabilities were exactly right."
# Metrics of the rows that prove thresholds.
UNSEEN: Columns = {
    "method": "{method}",
    "accuracy": _figure("proof_accuracy"),
    "NLL": _figure("proof_nll"),
    "ECE (its floor)": lambda row: f"{_figure('proof_ece')(row)} ({row['proof_ece_floor']:.3f})",
    "Brier": _figure("proof_brier"),
    "AURC": _figure("proof_aurc"),
}


def headline(results: Sequence[Row], read_twice: Sequence[Row], training_free: Sequence[Row]) -> str:
    """Return one table of the share of questions that each method answers at a proved risk, on every set.

    Args:
        results: results of `benchmarks.peers`.
        read_twice: results of `benchmarks.peers.twice`, for some of the same sets.
        training_free: results of `benchmarks.peers.training_free`, for some of the same sets.
    """
    cells: dict[str, Row] = {method: {"method": method} for method in HEADLINE}
    for result in (*results, *read_twice, *training_free):
        title = TITLES.get(result["set"])
        for row in _recalibrated(result):
            method = ANYJEV.format_map(result) if result in training_free else row["method"]
            if title is not None and (method in HEADLINE or result in training_free):
                shown = "{accuracy:.3f}: {answered_at_5:.2f} / {answered_at_10:.2f}".format_map(row)
                cells.setdefault(method, {"method": method})[title] = shown
    none = dict.fromkeys(TITLES.values(), "–")
    columns: Columns = {"method": "{method}"} | {title: f"{{{title}}}" for title in none}
    return record_table([none | row for row in cells.values()], columns)


def _recalibrated(result: Row) -> list[Row]:
    return [row for row in result["rows"] if row["treatment"] == "recalibrated"]


def peers(results: Sequence[Row], read_twice: Sequence[Row], training_free: Sequence[Row]) -> str:
    """Return a table for each set but those of the demo's other questions, recalibrated, and where they come from.

    Args:
        results: results of `benchmarks.peers`.
        read_twice: results of `benchmarks.peers.twice`, for some of the same sets.
        training_free: results of `benchmarks.peers.training_free`, for some of the same sets.
    """
    return _tables([result for result in results if result["set"] not in QUESTIONS], read_twice, training_free)


def peers_of_questions(results: Sequence[Row], training_free: Sequence[Row]) -> str:
    """Return the same for the demo's other questions."""
    return _tables([result for result in results if result["set"] in QUESTIONS], [], training_free)


def _tables(results: Sequence[Row], read_twice: Sequence[Row], training_free: Sequence[Row]) -> str:
    ordered = sorted(results, key=lambda result: SETS.index(result["set"]))
    again, beside = ({result["set"]: result for result in part} for part in (read_twice, training_free))
    first = ordered[0]
    revisions = ", ".join(dict.fromkeys(result["revision"] for result in ordered))
    about = (
        "Recalibrated on the validation rows. ± is the standard deviation over three seeds of the draws and, above "
        "a LoRA, of its training; what is "
        f"answered is the mean over {first['n_divisions']} divisions, ± their standard deviation, of the rows for the "
        f"proof (delta {first['delta']:g}) or, without any, of the test rows into halves, one to prove a threshold and "
        f"one to answer. {FOREIGN if any(result['foreign'] for result in ordered) else ''}"
        f"{first['base_model']}, {first['dtype']}; {first['machine']['cores']} cores of "
        f"{first['machine']['processor']}, revision {revisions}; `python -m benchmarks.peers`."
    )
    tables = [_table(result, again.get(result["set"]), beside.get(result["set"])) for result in ordered]
    notes = [
        *_about_read_twice([again[result["set"]] for result in ordered if result["set"] in again]),
        *_about_training_free([beside[result["set"]] for result in ordered if result["set"] in beside]),
    ]
    return "\n\n".join([*tables, about, *notes])


def _about_read_twice(results: Sequence[Row]) -> list[str]:
    """Return what the rows that were read twice cost, and where they come from."""
    if not results:
        return []
    costs = ", ".join(f"{result['twice_ms'] / result['once_ms']:.2f} ({result['set']})" for result in results)
    first, revisions = results[0], ", ".join(dict.fromkeys(result["revision"] for result in results))
    return [
        f"Read twice: the template holds the text twice, on lines of its own. A text alone takes {costs} times as long "
        f"as once, in one run on {first['machine']['cores']} cores of {first['machine']['processor']}. Revision "
        f"{revisions}; `python -m benchmarks.peers.twice`."
    ]


def _about_training_free(results: Sequence[Row]) -> list[str]:
    """Return where the rows without training come from."""
    if not results:
        return []
    revisions = ", ".join(dict.fromkeys(result["revision"] for result in results))
    return [
        f"AnyJev 0.3 answers without training, and is asked the number of test rows beside its name, drawn at random, "
        f"and at most as many of each other part. Revision {revisions}; `{results[0]['command']}`."
    ]


def _table(result: Row, read_twice: Row | None, training_free: Row | None) -> str:
    foreign = f", {result['n_foreign']:,} foreign ({result['foreign']})" if result["foreign"] else ""
    proof = f", {result['n_proof']:,} for the proof" if result.get("n_proof") else ""
    sizes = (
        f"**{result['set']}**: {result['n_train']:,} training, {result['n_validation']:,} validation, "
        f"{result['n_test']:,} test rows{proof}{foreign}."
    )
    rows = [row for one in (result, read_twice) if one is not None for row in _recalibrated(one)]
    if any(row["method"] in ABOVE_LORA and row["seeds"] is None for row in rows):
        sizes += " Each LoRA was trained with one seed."
    if training_free is not None:
        rows += [row | {"method": ANYJEV.format_map(training_free)} for row in _recalibrated(training_free)]
    tables = [record_table(rows, _columns(rows[0]))]
    if "proof_ece" in rows[0]:
        of = f"The same on the {result['n_proof']:,} rows for the proof, of which no method has seen any."
        tables += [f"{of} {FLOOR}", record_table(rows, UNSEEN)]
    return "\n\n".join([sizes, *tables])


def _columns(row: Row) -> Columns:
    """Return the columns of the figures that a set has."""
    found = (
        COLUMNS if row["foreign_confidence"] is not None else {k: v for k, v in COLUMNS.items() if v is not _foreign}
    )
    if row["accuracy_clear"] is not None:
        return found
    return {name.removesuffix(" (clear)"): column for name, column in found.items()}
