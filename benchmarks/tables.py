"""Writes the tables of the documentation from the committed result files, between the markers that name them.

`python -m benchmarks.tables` rewrites README.md and eight pages of docs; `--check` exits 1 if that would change one.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import answer_tables, few_rows
from benchmarks import deploy_tables as deploy
from benchmarks.calibration.report.records import read_results
from benchmarks.calibration.report.study import studies
from benchmarks.cost_and_quality import cost_and_quality
from benchmarks.decisions.table import decisions
from benchmarks.elsewhere import table as elsewhere
from benchmarks.families import families
from benchmarks.faults import tables as faults
from benchmarks.head_training import times
from benchmarks.markdown import Columns, on_machine, record_table
from benchmarks.peers import depths, mirrored
from benchmarks.peers.table import headline, peers, peers_of_questions
from benchmarks.processors import table as processors
from benchmarks.result_files import RESULTS, read_lines
from benchmarks.row_table import rows_to_prove
from benchmarks.score_table import scores
from benchmarks.server_process import ADAPTER, ROOT
from benchmarks.serving import tables as serving

__all__ = ["render"]

DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("calibration", "familiarity", "heads", "results", "rows")),
    *(ROOT / "docs" / f"{name}.md" for name in ("serving", "faults", "security", "deploy", "base-models")),
)

Result = dict[str, Any]

METHODS = {"base": "base model", "lora": "LoRA", "bayesian": "Bayesian-LoRA", "head": "decision head"}
METRICS = {
    "accuracy": "{accuracy:.3f}",
    "NLL": "{nll:.3f}",
    "ECE": "{ece:.3f}",
    "Brier": "{brier:.3f}",
    "AURC": "{aurc:.3f}",
}


def _load(folder: str, name: str = "*") -> list[Result]:
    return [json.loads(file.read_text()) for file in sorted((RESULTS / folder).glob(f"{name}.json"))]


def _others() -> list[Result]:
    """Return the results on the peers' sets that are not of `benchmarks.peers` itself nor of other programs."""
    folders = ("peers_lora", "read_twice", "peers_lora_twice", "encoder", "companion", "product")
    return [result for folder in folders for result in _load(folder)]


def _programs() -> list[Result]:
    """Return the results of the peers that are other projects' programs."""
    return _load("training_free") + _load("decision_model")


def _label(result: Result) -> str:
    """Return the method, with its starting point if that was a trained LoRA."""
    started = "training" in result and result["training"].get("init_from")
    return METHODS[result["method"]] + (", from the LoRA" if started else "")


def _evaluations(folder: str) -> str:
    """Metrics by method and number of draws, and where they come from."""
    order = list(METHODS)
    results = sorted(_load(folder), key=lambda r: (order.index(r["method"]), _label(r), r["n_samples"], r["seed"] or 0))
    columns: Columns = {"method": _label, "draws": "{n_samples}", **METRICS, "seconds": "{seconds:.0f}"}
    return f"{record_table(results, columns)}\n\n{_provenance(results)}"


def _provenance(results: list[Result]) -> str:
    first = results[0]
    machine = first["machine"]
    seeds = sorted({r["training"]["settings"]["seed"] for r in results if "training" in r})
    return (
        f"{first['n_examples']} questions of {first['dataset']}; {first['base_model']}, {first['dtype']}; "
        f"training seeds {', '.join(map(str, seeds))}; "
        f"{on_machine(machine)}, torch {machine['torch']}. "
        "Seconds are those of all questions under all draws."
    )


def _concurrent(folder: str) -> str:
    [result] = _load(folder)
    columns: Columns = {
        "concurrent requests": "{n_requests}",
        "lost": "{lost}",
        "wrong": "{wrong}",
        "p50 (s)": "{p50_s:.2f}",
        "p99 (s)": "{p99_s:.2f}",
        "requests a second": "{requests_per_s:.1f}",
        "memory growth (MiB)": "{memory_growth_mib:.1f}",
    }
    about = f"{result['n_samples']} draws each; {on_machine(result['machine'])}."
    return f"{record_table([result], columns)}\n\n{about}"


def _parts(name: str) -> str:
    """Return what each part of the demo's adapter reaches, from its training record."""
    parts = json.loads((ADAPTER / "bayesian_config.json").read_text())["training"]["parts"]
    return record_table([figures | {"part": part} for part, figures in parts.items()], {"": "{part}", **METRICS})


def _guarantee(folder: str) -> str:
    """Targets and coverages against what 200 calibrations came to."""
    parts = []
    for result in _load(folder):
        selective: Columns = {
            "target risk": "{target_risk:g}",
            "calibrations over it": "{population[exceeds]:.3f}",
            "limit": f"{result['limit']:.3f}",
            "mean error": lambda row: _share(row["population"]["mean_error"]),
            "mean coverage": lambda row: _share(row["population"]["mean_coverage"]),
            "refused": f"{{population[refused]}} of {result['splits']}",
            "finite test halves over it": "{halves[exceeds]:.3f}",
        }
        conformal = {
            "coverage asked for": "{coverage:g}",
            "coverage of the sets": "{mean_coverage:.3f} ± {standard_error:.3f}",
            "choices in a set": "{mean_size:.2f}",
        }
        parts += [
            f"{Path(result['source']).stem}: {result['n_examples']} questions, {result['error']:.1%} of all answers "
            f"wrong, {result['n_samples']} draws, delta {result['delta']:g}.",
            record_table(result["selective"], selective),
            record_table(result["conformal"], conformal),
        ]
    return "\n\n".join(parts)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _bayesianize(folder: str) -> str:
    """LoRAs before and after."""
    results = _load(folder)
    rows = [
        found | {"label": label.format(epochs=result["epochs"])}
        for result in results
        for label, key in (
            ("LoRA of PEFT, {epochs} epochs, sums of log-probabilities", "lora_by_sums"),
            ("LoRA of PEFT, {epochs} epochs, divided by length", "lora"),
            ("made Bayesian", "bayesian"),
        )
        for found in result.get(key, [])  # that of six epochs was judged earlier, and by less
    ]
    columns: Columns = {"": "{label}", "treatment": _treatment, **METRICS}
    result = results[0]
    seconds = " and ".join(f"{r['bayesianize_seconds']:.0f} s" for r in results)
    return (
        f"{record_table(rows, columns)}\n\n"
        f"{result['n_test']} questions of arc_easy_test.jsonl, one seed; {seconds} for "
        f"`blora bayesianize`, loading included; {result['base_model']}, {result['dtype']}; "
        f"{on_machine(result['machine'])}."
    )


def _treatment(found: Result) -> str:
    return "recalibrated" if found.get("recalibrated") else "with temperature" if found["tempered"] else "as it is"


def _training_time(folder: str) -> str:
    """Return the table of our training step beside one of plain LoRA."""
    [result] = _load(folder)
    low, high = result["ratio_quartiles"]
    counts = result["n_parameters"]
    return (
        f"A training step takes {result['ratio']:.2f} times as long as one of plain LoRA (quartiles {low:.2f} and "
        f"{high:.2f} of {result['n_steps']} pairs on the same batches of {result['batch_size']}, side by side in one "
        f"process; paper: 1.2), and learns {counts['bayesian']:,} parameters against {counts['lora']:,} (paper: 0.42 M "
        f"more). {result['base_model']}, {result['dtype']}; {on_machine(result['machine'])}."
    )


def _search(folder: str) -> str:
    """Every variant that was tried, in order."""
    tried = read_lines(RESULTS / folder / "search.jsonl")
    columns: Columns = {
        "variant": "{label}",
        "judged on": lambda r: str(r.get("n_development", "validation rows")),
        "best epoch": "{best_epoch} of {epochs:g}",
        "draws": "{n_samples}",
        **{heading: METRICS[heading] for heading in ("accuracy", "NLL", "ECE", "AURC")},
        "temperature": "{temperature:.2f}",
        **{f"{name}, tempered": f"{{{name.lower()}_tempered:.3f}}" for name in ("NLL", "ECE", "Brier", "AURC")},
        "NLL, recalibrated": lambda r: _share(r.get("nll_recalibrated")),
        "ECE, recalibrated": lambda r: _share(r.get("ece_recalibrated")),
    }
    return record_table(tried, columns)


def _choice(name: str) -> str:
    """Return the table of the search that chose the defaults, by validation rows of ARC-Easy."""
    found = _load("calibration/arc_easy")
    methods = ("lora_best", "bayesian_wide", "bayesian")
    rows = [r | r["validation"] for method in methods for r in found if r["method"] == method]
    columns: Columns = {
        "method": "{label}",
        "seed": "{seed}",
        "best epoch": lambda r: str(r["training"].get("best_epoch", "–")),
        **METRICS,
    }
    n_rows = found[0]["validation"]["n_examples"]
    return (
        f"{record_table(rows, columns)}\n\nARC-Easy, {n_rows} validation questions, which chose the epoch and the "
        "recalibration too; recalibrated."
    )


def _draws(folder: str) -> str:
    """How near few draws come to many."""
    [result] = _load(folder)
    columns: Columns = {
        "draws": "{draws}",
        "independent": "{independent[mean]:.4f} ± {independent[std]:.4f}",
        "mirrored pairs": "{mirrored[mean]:.4f} ± {mirrored[std]:.4f}",
        "herded": "{herded[mean]:.4f}",
    }
    return (
        f"{record_table(result['points'], columns)}\n\n"
        f"The posterior's mean alone: {result['mean_of_the_posterior']:.4f}. {result['n_test']} test questions; "
        f"herded on {result['n_choosing']} others, out of {result['n_candidates']}."
    )


# Variants of the search by how many layers have a posterior, and the way to serve them that was measured.
DEPTHS = {
    "LoRA": ("none, plain LoRA", "lora", "lora"),
    "Bayesian in 2 layers, LoRA in 8": ("2 of 10", "fixed", "early"),
    "Bayesian": ("10 of 10", "everywhere", None),
}


def _depth(name: str) -> str:
    """Return the table of quality and cost by the number of layers with a posterior."""
    tried = {r["label"]: r for r in read_lines(RESULTS / "search" / "search.jsonl")}
    [result] = _load("serving")
    ms = result["ms_a_question"]
    columns: Columns = {
        "layers with a posterior": "{shown}",
        **{heading: METRICS[heading] for heading in ("NLL", "ECE", "AURC")},
        "NLL, tempered": "{nll_tempered:.3f}",
        "16 draws, times LoRA": lambda r: f"{ms[r['fixed']] / ms['lora']:.2f}",
        "stops early": lambda r: f"{ms[r['early']] / ms['lora']:.2f}" if r["early"] is not None else "–",
    }
    rows = [
        tried[label] | {"shown": shown, "fixed": fixed, "early": early}
        for label, (shown, fixed, early) in DEPTHS.items()
    ]
    n_rows = tried["LoRA"]["n_development"]
    where = f"{n_rows} training questions of ARC-Easy that neither trained nor validated, one seed."
    return f"{record_table(rows, columns)}\n\n{where}"


def _prefixes(result: Result) -> str:
    """Accuracy on labels that begin alike, and on labels that do not."""
    rows = [found | {"way": f"names {way}"} for way, found in result["ways"].items()]
    columns: Columns = {"an adapter trained and asked with": "{way}", "accuracy": METRICS["accuracy"]}
    return (
        f"{record_table(rows, columns)}\n\n{result['n_questions']:,} "
        f"questions, {result['dtype']}, one seed, {on_machine(result['machine'])}, revision "
        f"{result['revision']}; `{result['command']}`."
    )


def _of(folder: str, make: Callable[[Result], str], file: str = "*") -> Callable[[str], str]:
    """Return a function that makes the table of the one result in a folder, or of one of its files."""

    def table(name: str) -> str:
        [result] = _load(folder, file)
        return make(result)

    return table


def _beside_lora(name: str) -> str:
    [study] = [study for study in studies(read_results(RESULTS / "calibration")) if study.trained_on == "arc_easy"]
    return elsewhere.foreign_beside_lora(_load("elsewhere"), *_load("elsewhere_lora"), study)


TABLES: dict[str, Callable[[str], str]] = {
    "triage": _evaluations,
    "guarantee": _guarantee,
    "bayesianize": _bayesianize,
    "training_time": _training_time,
    "head_training": lambda name: times(_load(name)),
    "depths": lambda name: depths.table(_load(name)),
    "mirrored": lambda name: mirrored.table(_load(name)),
    "few_rows": lambda name: few_rows.recalibration_table(*_load(name)),
    "all_rows": lambda name: few_rows.all_rows_table(*_load("few_rows")),
    "search": _search,
    "choice": _choice,
    "attacks": _of("attacks", faults.attacks),
    "churn": _of("churn", faults.churn),
    "generated": _of("generated", faults.generated),
    "saturation": _of("saturation", faults.saturation),
    "killed": _of("killed", faults.killed),
    "memory": lambda name: faults.memory(_load("memory")),
    "together": _of("together", faults.together),
    "prefixes": _of("prefixes", _prefixes),
    "heads": _of("heads", serving.heads),
    "image": _of("image", deploy.image),
    "sizing": _of("sizing", deploy.sizing),
    "depth": _depth,
    "draws": _draws,
    "cost_and_quality": cost_and_quality,
    "serving_ways": _of("serving", serving.ways),
    "serving_agreement": _of("serving", serving.agreement),
    "serving_growth": _of("serving", serving.growth),
    "serving_beginnings": _of("serving", serving.beginnings),
    "serving_cost": _of("serving", serving.cost),
    "serving_load": _of("serving", serving.load),
    "vllm": lambda name: deploy.vllm(*_load("vllm", "scores"), *_load("vllm", "head")),
    "serving_profile": _of("serving", serving.profile),
    "processor_bounds": processors.bounds,
    "processors": processors.full,
    "concurrent": _concurrent,
    "headline": lambda name: headline(_load("peers"), _others(), _programs()),
    "peers": lambda name: peers(_load("peers"), _others(), _programs()),
    "peers_of_questions": lambda name: peers_of_questions(_load("peers"), _others(), _programs()),
    "foreign_signals": lambda name: elsewhere.foreign_signals(_load("elsewhere")),
    "foreign_probabilities": lambda name: elsewhere.foreign_probabilities(_load("elsewhere")),
    "foreign_beside_lora": _beside_lora,
    "scores": scores,
    "families": lambda name: families(*_load("families", "result")),
    "rows_to_prove": rows_to_prove,
    "withheld": answer_tables.withheld,
    "demo_parts": _parts,
    "answer_ambiguous": answer_tables.answer,
    "answer_out_of_scope": answer_tables.answer,
    "answer_decisions": answer_tables.decisions,
    "questions": answer_tables.questions,
    "decisions_beside_any2jev": _of("decisions", decisions, "beside_any2jev"),
}


def render(text: str) -> str:
    """Return the text with every table between `<!-- table NAME -->` and `<!-- end -->` made anew."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table {name} -->\n{TABLES[name](name)}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    """Rewrites or checks every document."""
    stale = {document: made for document in DOCUMENTS if (made := render(document.read_text())) != document.read_text()}
    if "--check" in sys.argv:
        return int(bool(stale))
    for document, made in stale.items():
        document.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
