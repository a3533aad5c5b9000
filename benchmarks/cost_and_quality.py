"""The table that quotes what an answer costs beside what it is worth, for one configuration a row."""

import json

from benchmarks.calibration.report.records import RECALIBRATED, TEMPERATURE, read_results
from benchmarks.calibration.report.study import MethodRuns, spread, studies
from benchmarks.markdown import markdown_table, on_machine
from benchmarks.result_files import RESULTS

__all__ = ["cost_and_quality"]

DATASET = "arc_easy_test"
# How each configuration is served, its cost in the result of benchmarks.serving, and its method in the comparison.
CONFIGURATIONS = (
    ("LoRA of PEFT, one pass", None, "LoRA, best epoch"),
    ("posterior in every adapted layer, the default of a LoRA: 16 draws", "everywhere_over_lora", "Bayesian-LoRA"),
    (
        "posterior in the top 2 of 10: 16 draws",
        "cost_fixed16_over_lora",
        "Bayesian-LoRA, top 2 layers",
    ),
    ("the same, stops early", "cost_early_over_lora", None),
)
# Columns of quality: metric and treatment.
QUALITY = {
    "accuracy": ("accuracy", TEMPERATURE),
    "NLL with a temperature": ("nll", TEMPERATURE),
    **{f"{title}, recalibrated": (title.lower(), RECALIBRATED) for title in ("NLL", "ECE", "AURC")},
}


def cost_and_quality(name: str) -> str:
    """Return cost as a multiple of one LoRA pass, and the quality of the same method in the comparison."""
    [cost] = [json.loads(file.read_text()) for file in (RESULTS / "serving").glob("*.json")]
    [study] = [s for s in studies(read_results(RESULTS / "calibration")) if s.trained_on == "arc_easy"]
    entries = {entry.label: entry for entry in study.entries}
    draws = {run.n_samples for run in entries["Bayesian-LoRA"].runs}
    rows = [
        [
            label,
            f"{cost['ratios'][key]['median']:.2f}" if key is not None else "1",
            *(_mean(entries.get(method), *column) for column in QUALITY.values()),
        ]
        for label, key, method in CONFIGURATIONS
    ]
    return (
        f"{markdown_table(['way to answer', 'times LoRA', *QUALITY], rows)}\n\n"
        f"Costs: ratios in one process, {cost['dtype']}, {on_machine(cost['machine'])}, revision "
        f"{cost['revision']}; `{cost['command']}`. Quality: {DATASET}, three seeds, under "
        f"{' or '.join(map(str, sorted(draws)))} draws, from the calibration report. Answers that stop early decide as "
        f"all 16 draws do on {cost['answers']['early_agreement_fixed']:.1%} of the questions."
    )


def _mean(entry: MethodRuns | None, metric: str, treatment: str) -> str:
    found = spread(entry.values(DATASET, treatment, metric).values()) if entry is not None else None
    return found.text() if found is not None else "–"
