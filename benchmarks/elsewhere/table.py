"""The tables of docs/familiarity.md: signals beside each other, and the probabilities of foreign questions."""

from collections.abc import Sequence
from typing import Any

from benchmarks.calibration.report.records import TEMPERATURE
from benchmarks.calibration.report.study import Study, spread
from benchmarks.elsewhere.modesty import SERVED, WAYS
from benchmarks.elsewhere.sets import SETS
from benchmarks.markdown import markdown_table, on_machines

__all__ = ["foreign_beside_lora", "foreign_probabilities", "foreign_signals"]

Result = dict[str, Any]

# The rows of ARC-Easy's adapter, as the comparison of methods names their sets.
COMPARED = {"test": "arc_easy_test", "OpenBookQA": "openbookqa", "BoolQ": "boolq", "ARC-Challenge": "arc_challenge"}
LORA = "LoRA, best epoch"
TITLES = {"demo": "demo", "clinc150": "CLINC150", "arc_easy": "ARC-Easy"}


def foreign_signals(results: Sequence[Result]) -> str:
    """Return the table of signals by foreign set, and where the figures come from."""
    ordered = _ordered(results)
    columns = [(result, name) for result in ordered for name in result["foreign"]]
    names = dict.fromkeys(signal for result, name in columns for signal in result["foreign"][name]["signals"])
    header = ["signal", *(f"{TITLES[result['set']]}: {name}" for result, name in columns)]
    rows = [
        [signal, *(_told(result["foreign"][name]["signals"].get(signal)) for result, name in columns)]
        for signal in names
    ]
    sizes = "; ".join(
        f"{TITLES[result['set']]}: {result['n_train']:,} training rows, {result['n_test']:,} test rows, "
        + ", ".join(f"{found['n']:,} foreign ({name})" for name, found in result["foreign"].items())
        for result in ordered
    )
    about = (
        f"AUROC / share of the foreign rows found at {ordered[0]['false_alarms']:.0%} false alarms. {sizes}. "
        f"{_provenance(ordered)}"
    )
    return f"{markdown_table(header, rows)}\n\n{about}"


def foreign_probabilities(results: Sequence[Result]) -> str:
    """Return the table of probabilities as served and in modest forms, on rows with a right answer."""
    rows = []
    for result in _ordered(results):
        parts = {"test": result["test"]} | {name: found["ways"] for name, found in result["foreign"].items()}
        for name, ways in parts.items():
            rows.append([f"{TITLES[result['set']]}: {name}", *(_modest(ways[way]) for way in WAYS)])
    references = ", ".join(f"{one['n_reference']:,} ({TITLES[one['set']]})" for one in _ordered(results))
    about = (
        "NLL / ECE / mean confidence; out-of-scope rows have no right answer, and their mean confidence alone. Guesses "
        f"have a share of {results[0]['share_of_guesses']:g} and an expected cost of {results[0]['budget']:g} nats in "
        f"distribution. Rows that they begin beyond: {references}."
    )
    return f"{markdown_table(['rows', *WAYS], rows)}\n\n{about}"


def foreign_beside_lora(results: Sequence[Result], above: Result, study: Study) -> str:
    """Return the table of heads' probabilities as served beside those of plain LoRA, all trained on ARC-Easy.

    Args:
        results: results of this benchmark.
        above: the result of a head above a LoRA.
        study: the comparison of methods that were trained on ARC-Easy.
    """
    [result] = (result for result in results if result["set"] == "arc_easy")
    [lora] = (entry for entry in study.entries if entry.label == LORA)
    heads = [
        {"test": one["test"]} | {name: found["ways"] for name, found in one["foreign"].items()}
        for one in (result, above)
    ]
    rows = []
    for name, dataset in COMPARED.items():
        means = [spread(lora.values(dataset, TEMPERATURE, metric).values()) for metric in ("nll", "ece")]
        of_lora = " / ".join(f"{found.mean:.3f}" for found in means if found is not None)
        served = [parts[name][SERVED] for parts in heads]
        rows.append([name, *(f"{one['nll']:.3f} / {one['ece']:.3f}" for one in served), of_lora])
    about = (
        f"NLL / ECE. The heads were trained on {result['n_train']:,} questions, one LoRA below the second; plain LoRA "
        "on 800, with three seeds. The heads were asked the first 600 test questions and 400 of each other set; plain "
        f"LoRA all and 300. The head above a LoRA: {on_machines([above])}, revision {above['revision']}; "
        f"`{above['command']}`."
    )
    header = ["rows", "head", "head above a LoRA", f"plain {LORA}, with a temperature"]
    return f"{markdown_table(header, rows)}\n\n{about}"


def _ordered(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda result: SETS.index(result["set"]))


def _told(figures: dict[str, float] | None) -> str:
    return "–" if figures is None else f"{figures['auroc']:.3f} / {figures['found']:.0%}"


def _modest(figures: dict[str, float]) -> str:
    confidence = f"{figures['confidence']:.2f}"
    return f"{figures['nll']:.3f} / {figures['ece']:.3f} / {confidence}" if "nll" in figures else confidence


def _provenance(results: Sequence[Result]) -> str:
    first = results[0]
    revisions = ", ".join(dict.fromkeys(result["revision"] for result in results))
    return (
        f"{first['base_model']}, {first['dtype']}, {first['n_draws']} draws; {on_machines(results)}, "
        f"revision {revisions}; `python -m benchmarks.elsewhere`."
    )
