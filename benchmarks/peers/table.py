"""The peers' tables for README.md and docs/results.md."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.markdown import Columns, on_machines, record_table
from benchmarks.peers.sets import QUESTIONS, SETS

__all__ = ["figure", "headline", "peers", "peers_of_questions"]

Row = dict[str, Any]


def figure(name: str, form: str = ".3f") -> Callable[[Row], str]:
    """Return a column of a figure of a result's row, with its spread over seeds if there is one."""

    def column(row: Row) -> str:
        value, spread = row[name], (row["spread"] or {}).get(name)
        return "–" if value is None else f"{value:{form}}" + (f" ± {spread:{form}}" if spread is not None else "")

    return column


def _accuracy(row: Row) -> str:
    shown = figure("accuracy")(row)
    return shown if row["accuracy_clear"] is None else f"{shown} ({row['accuracy_clear']:.3f})"


def _foreign(row: Row) -> str:
    if row["foreign_confidence"] is None:
        return "–"
    found = (row.get(f"foreign_{name}") for name in ("confidence", "mutual_information", "familiarity"))
    return " / ".join("–" if value is None else f"{value:.3f}" for value in found)


COLUMNS: Columns = {
    "method": "{method}",
    "accuracy (clear)": _accuracy,
    "NLL": figure("nll"),
    "ECE": figure("ece"),
    "Brier": figure("brier"),
    "AURC": figure("aurc"),
    "answered at proved 5 %": "{answered_at_5:.2f} ± {answered_at_5_std:.2f}",
    "at proved 10 %": "{answered_at_10:.2f} ± {answered_at_10_std:.2f}",
    "foreign AUROC": _foreign,
}

FOREIGN = (
    "Foreign AUROC: of 1 - confidence / of mutual information / of the familiarity's distance, for telling "
    "foreign rows from test rows. "
)
# The sentence encoder that is a base model in some rows.
ENCODER = "all-MiniLM-L6-v2"
# The methods whose rows have seeds if several LoRAs were trained.
ABOVE_LORA = tuple(f"head above a LoRA, posterior mean{way}" for way in ("", ", read twice", f", {ENCODER}"))
# The product of plain regressions, which has no posterior and no familiarity.
MULTIPLIED = "regressions on words and states, multiplied"
# The sets of the headline by their titles, and the methods that it shows.
TITLES = {"demo": "demo", "banking77": "BANKING77", "clinc150": "CLINC150", "arc_easy": "ARC-Easy", "boolq": "BoolQ"}
HEADLINE = (
    *("base model's log-probabilities", "TF-IDF regression", "regression on frozen states", MULTIPLIED),
    *("regression on frozen states, read twice", "contrast on frozen states", "head, posterior mean"),
    *("head, 64 draws", "head, 64 draws, read twice"),
    *("head above a LoRA, 64 draws", "head above a LoRA, 64 draws, read twice"),
    *(f"{method}, {ENCODER}" for method in ("regression on words and sentence embeddings", MULTIPLIED)),
    *(f"{method}, {ENCODER}" for method in ("head, 64 draws", "head above a LoRA, 64 draws")),
    *("regression on frozen states, both models", f"{MULTIPLIED}, both models", "head, 64 draws, both models"),
)
# Methods by what the tables call them, where that is not the same.
SHOWN = {"AnyJev": "AnyJev on {n_test} rows"}
FLOOR = "The floor of an ECE is its mean if the probabilities were exactly right."
# Metrics of the rows that prove thresholds.
UNSEEN: Columns = {
    "method": "{method}",
    "accuracy": figure("proof_accuracy"),
    "NLL": figure("proof_nll"),
    "ECE (its floor)": lambda row: f"{figure('proof_ece')(row)} ({row['proof_ece_floor']:.3f})",
    "Brier": figure("proof_brier"),
    "AURC": figure("proof_aurc"),
}


def headline(results: Sequence[Row], others: Sequence[Row], programs: Sequence[Row]) -> str:
    """Return one table of the share of questions that each method answers at a proved risk, on every set.

    Args:
        results: results of `benchmarks.peers`.
        others: results of `benchmarks.peers.lora`, `.twice`, `.encoder`, `.companion` and `.product`, for some of the
            same sets.
        programs: results of `benchmarks.peers.training_free` and `benchmarks.peers.decision_model`, for some of the
            same sets.
    """
    cells: dict[str, Row] = {method: {"method": method} for method in HEADLINE}
    for result in (*results, *others, *programs):
        title = TITLES.get(result["set"])
        for row in _recalibrated(result):
            if title is not None and (row["method"] in HEADLINE or result in programs):
                shown = "{accuracy:.3f}: {answered_at_5:.2f} / {answered_at_10:.2f}".format_map(row)
                cells.setdefault(row["method"], {"method": row["method"]})[title] = shown
    none = dict.fromkeys(TITLES.values(), "–")
    columns: Columns = {"method": "{method}"} | {title: f"{{{title}}}" for title in none}
    return record_table([none | row for row in cells.values()], columns)


def _recalibrated(result: Row) -> list[Row]:
    """Return a result's recalibrated rows under the names that the tables show."""
    return [
        row | {"method": SHOWN.get(row["method"], row["method"]).format_map(result)}
        for row in result["rows"]
        if row["treatment"] == "recalibrated"
    ]


def peers(results: Sequence[Row], others: Sequence[Row], programs: Sequence[Row]) -> str:
    """Return a table for each set but those of the demo's other questions, recalibrated, and where they come from.

    Args:
        results: results of `benchmarks.peers`.
        others: results of `benchmarks.peers.lora`, `.twice`, `.encoder`, `.companion` and `.product`, for some of the
            same sets.
        programs: results of `benchmarks.peers.training_free` and `benchmarks.peers.decision_model`, for some of the
            same sets.
    """
    return _tables([result for result in results if result["set"] not in QUESTIONS], others, programs)


def peers_of_questions(results: Sequence[Row], others: Sequence[Row], programs: Sequence[Row]) -> str:
    """Return the same for the demo's other questions."""
    return _tables([result for result in results if result["set"] in QUESTIONS], others, programs)


def _tables(results: Sequence[Row], others: Sequence[Row], programs: Sequence[Row]) -> str:
    ordered = sorted(results, key=lambda result: SETS.index(result["set"]))
    names = [result["set"] for result in ordered]
    first = ordered[0]
    revisions = ", ".join(dict.fromkeys(result["revision"] for result in ordered))
    about = (
        "Recalibrated on the validation rows. ± is the standard deviation over three seeds of the draws and, above "
        "a LoRA, of its training; what is "
        f"answered is the mean over {first['n_divisions']} divisions, ± their standard deviation, of the rows for the "
        f"proof (delta {first['delta']:g}) or, without any, of the test rows into halves, one to prove a threshold and "
        f"one to answer. {FOREIGN if any(result['foreign'] for result in ordered) else ''}"
        f"{first['base_model']}, {first['dtype']}; {on_machines(ordered)}, "
        f"revision {revisions}; `python -m benchmarks.peers`."
    )
    beside = sorted(
        (one for one in (*others, *programs) if one["set"] in names), key=lambda one: names.index(one["set"])
    )
    tables = [_table(result, [one for one in beside if one["set"] == result["set"]]) for result in ordered]
    notes = [note for about_them in NOTES for note in about_them(beside)]
    return "\n\n".join([*tables, about, *notes])


def _about_lora(beside: Sequence[Row]) -> list[str]:
    """Return where the heads above a LoRA come from."""
    results = [result for result in beside if result["rows"][0]["method"] in ABOVE_LORA]
    if not results:
        return []
    runs = ", ".join(f"`{result['command']}` (revision {result['revision']})" for result in results)
    return [f"Above a LoRA, on {on_machines(results)}: {runs}."]


def _about_read_twice(beside: Sequence[Row]) -> list[str]:
    """Return what the rows that were read twice cost, and where they come from."""
    results = [result for result in beside if "twice_ms" in result]
    if not results:
        return []
    costs = _ratios(results, "twice_ms", "once_ms")
    return [
        f"Read twice: the template holds the text twice, on lines of its own. A text alone takes {costs} times as long "
        f"as once, each set in one run, on {on_machines(results)}. Revision "
        f"{_revisions(results)}; `python -m benchmarks.peers.twice`."
    ]


def _about_encoder(beside: Sequence[Row]) -> list[str]:
    """Return what the rows on the sentence encoder cost, and where they come from."""
    results = [result for result in beside if "encoder_ms" in result]
    if not results:
        return []
    costs = _ratios(results, "encoder_ms", "embedded_ms")
    first = results[0]
    return [
        f"{first['base_model']}: a sentence encoder as the base model. A text alone takes {costs} of the time that the "
        f"embedded model takes, each set in one run, on {on_machines(results)}. Revision "
        f"{_revisions(results)}; `python -m benchmarks.peers.encoder`."
    ]


def _about_both(beside: Sequence[Row]) -> list[str]:
    """Return what the rows on the states of both models cost, and where they come from."""
    results = [result for result in beside if "both_ms" in result]
    if not results:
        return []
    costs = _ratios(results, "both_ms", "embedded_ms")
    first = results[0]
    return [
        f"Both models: the states of {first['base_model']} and of its companion {ENCODER} side by side. A text alone "
        f"takes {costs} times as long as by the embedded model alone, each set in one run, on {on_machines(results)}. "
        f"Revision {_revisions(results)}; `python -m benchmarks.peers.companion`."
    ]


def _about_product(beside: Sequence[Row]) -> list[str]:
    """Return what the products of regressions are, and where they come from."""
    results = [result for result in beside if result["rows"][0]["method"] == MULTIPLIED]
    if not results:
        return []
    return [
        "Multiplied: a regression on words and one on the states of each model, each fitted by itself, to the powers "
        f"with the lowest NLL on validation rows. Revision {_revisions(results)}; `python -m benchmarks.peers.product`."
    ]


def _about_training_free(beside: Sequence[Row]) -> list[str]:
    """Return where AnyJev's rows come from."""
    results = [result for result in beside if result["rows"][0]["method"] == "AnyJev"]
    if not results:
        return []
    return [
        f"AnyJev 0.3 answers without training. It is tested on as many rows as its name says, drawn at random, "
        f"and at most as many of each other part. Revision {_revisions(results)}; `{results[0]['command']}`."
    ]


def _about_any2jev(beside: Sequence[Row]) -> list[str]:
    """Return what any2jev's rows cost to train, and where they come from."""
    results = [result for result in beside if result["rows"][0]["method"] == "any2jev"]
    if not results:
        return []
    costs = ", ".join(f"{result['rows'][0]['training_s'] / 60:.0f} ({result['set']})" for result in results)
    return [
        f"any2jev 0.1 is trained once, by its defaults, on the same training rows, in {costs} minutes of processor "
        f"time. Revision {_revisions(results)}; `python -m benchmarks.peers.decision_model --any2jev PROGRAM`."
    ]


# What is said below the tables of methods that the results of `benchmarks.peers` do not have.
NOTES = (
    *(_about_lora, _about_read_twice, _about_encoder, _about_both, _about_product),
    *(_about_training_free, _about_any2jev),
)


def _ratios(results: Sequence[Row], of: str, over: str) -> str:
    """Return the ratio of two costs on each set."""
    return ", ".join(f"{result[of] / result[over]:.2f} ({result['set']})" for result in results)


def _revisions(results: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(result["revision"] for result in results))


def _table(result: Row, beside: Sequence[Row]) -> str:
    foreign = f", {result['n_foreign']:,} foreign ({result['foreign']})" if result["foreign"] else ""
    proof = f", {result['n_proof']:,} for the proof" if result.get("n_proof") else ""
    sizes = (
        f"**{result['set']}**: {result['n_train']:,} training, {result['n_validation']:,} validation, "
        f"{result['n_test']:,} test rows{proof}{foreign}."
    )
    rows = [row for one in (result, *beside) for row in _recalibrated(one)]
    if any(row["method"] in ABOVE_LORA and row["seeds"] is None for row in rows):
        sizes += " A LoRA whose posterior mean has no spread was trained with one seed."
    tables = [record_table(rows, _columns(rows[0]))]
    if "proof_ece" in rows[0]:
        of = f"The same on the {result['n_proof']:,} rows for the proof, to which no method was fitted."
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
