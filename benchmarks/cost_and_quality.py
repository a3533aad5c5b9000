"""The table that quotes what an answer costs beside what it is worth, for one configuration a row."""

import json

from benchmarks.calibration.report.records import TEMPERATURE, read_results
from benchmarks.calibration.report.study import MethodRuns, spread, studies
from benchmarks.markdown import markdown_table, on_machine
from benchmarks.result_files import RESULTS

__all__ = ["cost_and_quality"]

DATASET = "arc_easy_test"
# How each configuration is served, its cost in the result of benchmarks.serving, and its method in the comparison.
CONFIGURATIONS = (
    ("LoRA of PEFT, one pass", None, "LoRA, best epoch"),
    ("posterior in every adapted layer, the default of a LoRA: 16 draws", "everywhere_over_lora", "Bayesian-LoRA"),
    ("posterior in the top 2 of 10: 16 draws", "cost_fixed16_over_lora", "Bayesian-LoRA, wide start, top 2 layers"),
    ("the same, stops early", "cost_early_over_lora", "Bayesian-LoRA, wide start, top 2 layers"),
)


def cost_and_quality(name: str) -> str:
    """Return cost as a multiple of one LoRA pass, and accuracy, NLL, ECE and AURC with a temperature."""
    [cost] = [json.loads(file.read_text()) for file in (RESULTS / "serving").glob("*.json")]
    [study] = [s for s in studies(read_results(RESULTS / "calibration")) if s.trained_on == "arc_easy"]
    entries = {entry.label: entry for entry in study.entries}
    rows = [
        [
            label,
            f"{cost['ratios'][key]['median']:.2f}" if key is not None else "1",
            *(_mean(entries[method], metric) for metric in ("accuracy", "nll", "ece", "aurc")),
        ]
        for label, key, method in CONFIGURATIONS
    ]
    return (
        f"{markdown_table(['way to answer', 'times LoRA', 'accuracy', 'NLL', 'ECE', 'AURC'], rows)}\n\n"
        f"Costs: ratios in one process, {cost['dtype']}, {on_machine(cost['machine'])}, revision "
        f"{cost['revision']}, posteriors with a wide start; `{cost['command']}`. Quality: {DATASET}, three seeds, with "
        f"a temperature, from the calibration report. Answers that stop early decide as all 16 draws do on "
        f"{cost['answers']['early_agreement_fixed']:.1%} of the questions."
    )


def _mean(entry: MethodRuns, metric: str) -> str:
    found = spread(entry.values(DATASET, TEMPERATURE, metric).values())
    assert found is not None  # every method was measured with a temperature
    return f"{found.mean:.3f}"
