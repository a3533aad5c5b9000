"""The tables' numbers, against what one computes by hand."""

from pathlib import Path

import pytest

from benchmarks.calibration.report.gains import cost_table, paper_table
from benchmarks.calibration.report.records import read_results
from benchmarks.calibration.report.study import studies
from benchmarks.calibration.report.table import Best, Table
from benchmarks.calibration.report.tables import auroc_table, metric_table, missing
from tests.benchmarks.calibration.report.results import CHALLENGE, EASY, Result, exact, numbers, study, write_results


def cells(table: Table) -> dict[tuple[str, ...], dict[str, str]]:
    """Text by the words of a row and the heading, bold as in Markdown."""
    return {
        tuple(row[: min(2, table.n_words)]): {
            name: f"**{cell}**" if isinstance(cell, Best) else cell
            for name, cell in zip(table.header, row, strict=True)
        }
        for row in table.rows
    }


# Metrics


def test_mean_and_sample_standard_deviation_over_seeds(tmp_path: Path) -> None:
    accuracies = (0.70, 0.72, 0.77)  # mean 0.73; deviations -0.03, -0.01, 0.04; variance 0.0026 / 2
    runs = [exact("lora", seed, {EASY: numbers(accuracy=a)}) for seed, a in enumerate(accuracies)]
    [row] = [r for key, r in cells(metric_table(study(tmp_path, *runs), EASY)).items() if key[1] == "as trained"]
    assert row["accuracy"] == "**0.730 ± 0.036**"
    assert row["NLL"] == "**1.000 ± 0.000**"
    assert row["seeds"] == "3"


def test_a_single_seed_has_a_mean_and_no_spread(tmp_path: Path) -> None:
    rows = cells(metric_table(study(tmp_path, exact("lora", 5, {EASY: numbers(nll=1.2346)})), EASY))
    assert rows["LoRA", "as trained"]["NLL"] == "**1.235**"
    assert rows["LoRA", "as trained"]["seeds"] == "1"


def test_the_best_single_model_of_each_treatment_is_bold(tmp_path: Path) -> None:
    rows = cells(
        metric_table(
            study(
                tmp_path,
                exact("lora", 0, {EASY: numbers(0.70, 1.2, 0.20)}, {EASY: numbers(0.70, 0.8, 0.05)}),
                exact("bayesian", 0, {EASY: numbers(0.69, 0.9, 0.06)}, {EASY: numbers(0.69, 0.9, 0.06)}),
                exact("ensemble", 0, {EASY: numbers(0.80, 0.5, 0.01)}, {EASY: numbers(0.80, 0.5, 0.01)}),
            ),
            EASY,
        )
    )
    bold = {key: [name for name, text in row.items() if text.startswith("**")] for key, row in rows.items()}
    ties = ["Brier", "AURC"]
    assert bold == {
        ("LoRA", "as trained"): ["accuracy", *ties],
        ("Bayesian-LoRA", "as trained"): ["NLL", "ECE", *ties],
        ("Ensemble of 3", "as trained"): [],
        ("LoRA", "with temperature"): ["accuracy", "NLL", "ECE", *ties],
        ("Bayesian-LoRA", "with temperature"): ties,
        ("Ensemble of 3", "with temperature"): [],
    }


def test_values_that_read_the_same_are_both_bold(tmp_path: Path) -> None:
    found = study(tmp_path, exact("lora", 0, {EASY: numbers(ece=0.1004)}), exact("tfb", 0, {EASY: numbers(ece=0.1001)}))
    rows = cells(metric_table(found, EASY))
    assert rows["LoRA", "as trained"]["ECE"] == rows["TFB", "as trained"]["ECE"] == "**0.100**"


def test_the_order_is_base_baselines_ours_ensembles(tmp_path: Path) -> None:
    methods = ("ensemble", "bayesian", "tfb", "blob", "lora_best", "lora", "base")
    found = study(tmp_path, *(exact(m, 0, {EASY: numbers()}, {EASY: numbers()}) for m in methods))
    rows = metric_table(found, EASY).rows
    expected = ["Base model", "LoRA", "LoRA, best step", "BLoB", "TFB", "Bayesian-LoRA", "Ensemble of 3"]
    assert [row[0] for row in rows] == expected * 2
    assert [row[1] for row in rows] == ["as trained"] * 7 + ["with temperature"] * 7


def test_recalibration_is_a_treatment_of_its_own(tmp_path: Path) -> None:
    runs = [
        exact(
            "lora",
            seed,
            {EASY: numbers(nll=1.0)},
            {EASY: numbers(nll=0.9)},
            {EASY: numbers(nll=0.8)},
            recalibration={"temperature": 2.0 + seed, "power": -0.5, "lapse": 0.1},
        )
        for seed in (0, 1)
    ]
    found = study(tmp_path, *runs, exact("bayesian", 0, {EASY: numbers(nll=0.7)}, {EASY: numbers(nll=0.6)}))
    rows = cells(metric_table(found, EASY))
    assert [rows["LoRA", treatment]["NLL"] for treatment in found.treatments] == [
        "1.000 ± 0.000",
        "0.900 ± 0.000",
        "0.800 ± 0.000",  # not marked best: the other model was not recalibrated
    ]
    assert missing(found, EASY) == {"recalibrated": ["Bayesian-LoRA"]}
    assert rows["LoRA", "recalibrated"]["temperature"] == "2.50 L^-0.50, lapse 0.10"
    assert ("Bayesian-LoRA", "recalibrated") not in rows
    assert "Bayesian-LoRA has nothing recalibrated." in found.missing()


def test_the_temperature_that_was_fitted_is_shown(tmp_path: Path) -> None:
    runs = [exact("lora", seed, {EASY: numbers()}, {EASY: numbers()}, temperature=2.0 + seed) for seed in (0, 1)]
    rows = cells(metric_table(study(tmp_path, *runs), EASY))
    assert rows["LoRA", "as trained"]["temperature"] == "1"
    assert rows["LoRA", "with temperature"]["temperature"] == "2.50 ± 0.71"


# Missing runs


def test_a_missing_seed_is_named_and_not_filled(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        exact("base", None, {EASY: numbers()}),
        *(exact("lora", seed, {EASY: numbers()}, {EASY: numbers()}) for seed in (0, 1, 2)),
        exact("bayesian", 0, {EASY: numbers(nll=0.8)}, {EASY: numbers(nll=0.8)}),
        exact("bayesian", 2, {EASY: numbers(nll=0.9)}),
        exact("ensemble", 0, {EASY: numbers()}, {EASY: numbers()}),
    )
    rows = cells(metric_table(found, EASY))
    seeds = {key: row["seeds"] for key, row in rows.items()}
    assert seeds["Bayesian-LoRA", "as trained"] == "2 of 3, without 1"
    assert seeds["Bayesian-LoRA", "with temperature"] == "1 of 3, without 1, 2"
    assert seeds["LoRA", "as trained"] == "3"
    assert seeds["Base model", "as trained"] == "untrained"
    assert seeds["Ensemble of 3", "as trained"] == "1"
    assert rows["Bayesian-LoRA", "as trained"]["NLL"] == "**0.850 ± 0.071**"
    assert ("Base model", "with temperature") not in rows
    assert found.missing() == [
        "Base model has nothing with temperature.",
        "Bayesian-LoRA has no run of seed 1.",
        "Bayesian-LoRA, seed 2, has no arc_easy_test with temperature.",
    ]


def test_a_complete_study_misses_nothing(tmp_path: Path) -> None:
    runs = [exact(m, 0, {EASY: numbers()}, {EASY: numbers()}) for m in ("base", "lora", "bayesian")]
    assert study(tmp_path, *runs).missing() == []


# Against the paper


def test_reductions_are_those_of_the_means_over_shared_seeds(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        exact("lora", 0, {EASY: numbers(ece=0.20, nll=1.0)}, {EASY: numbers(ece=0.10, nll=0.8)}),
        exact("lora", 1, {EASY: numbers(ece=0.30, nll=1.4)}),
        exact("lora", 2, {EASY: numbers(ece=0.90, nll=9.0)}),
        exact("bayesian", 0, {EASY: numbers(ece=0.04, nll=0.7)}, {EASY: numbers(ece=0.02, nll=0.6)}),
        exact("bayesian", 1, {EASY: numbers(ece=0.06, nll=0.5)}),
    )
    rows = {(row[0], row[2]): [*row[3:]] for row in paper_table(found).rows}
    assert rows[EASY, "as trained"] == ["2", "0.250 → 0.050", "80.0", "1.200 → 0.600", "50.0"]
    assert rows[EASY, "with temperature"] == ["1", "0.100 → 0.020", "80.0", "0.800 → 0.600", "25.0"]
    assert rows["the paper", "at most"] == ["–", "–", "84", "–", "76"]


def test_a_method_that_does_worse_has_a_negative_reduction(tmp_path: Path) -> None:
    found = study(tmp_path, exact("lora", 0, {EASY: numbers(ece=0.1)}), exact("bayesian", 0, {EASY: numbers(ece=0.15)}))
    assert paper_table(found).rows[0][5] == "-50.0"


@pytest.mark.parametrize("others", [[], [exact("lora", 7, {EASY: numbers()})]], ids=["no LoRA", "another seed"])
def test_without_a_seed_in_common_there_is_no_reduction(tmp_path: Path, others: list[Result]) -> None:
    rows = paper_table(study(tmp_path, exact("bayesian", 0, {EASY: numbers()}), *others)).rows
    ours = [[*row[3:]] for row in rows[:-1]]
    assert all(row == ["0", "–", "–", "–", "–"] for row in ours)
    assert len(ours) == 2 * len(others)


# AUROC


def test_auroc_columns_are_the_scores_that_are_known(tmp_path: Path) -> None:
    error = {"confidence": 0.7, "predictive_entropy": 0.71, "mutual_information": None}
    own = {"confidence": 0.72, "mutual_information": 0.6, "spread": 0.9}
    found = study(
        tmp_path,
        exact("lora", 0, {EASY: {"auroc_error": error, "auroc_ood": None}}),
        exact("bayesian", 0, {EASY: {"auroc_error": own, "auroc_ood": {"confidence": 0.55}}}),
    )
    table = auroc_table(found, EASY)
    assert table.header[3:] == (
        "error by confidence",
        "error by predictive entropy",
        "error by mutual information",
        "error by spread",
        "OOD by confidence",
    )
    rows = cells(table)
    assert [*rows["LoRA", "as trained"].values()][3:] == ["0.700", "**0.710**", "–", "–", "–"]
    assert [*rows["Bayesian-LoRA", "as trained"].values()][3:] == [
        "**0.720**",
        "–",
        "**0.600**",
        "**0.900**",
        "**0.550**",
    ]


def test_without_any_auroc_there_is_no_table(tmp_path: Path) -> None:
    none = {"auroc_error": None, "auroc_ood": {"confidence": None}}
    assert auroc_table(study(tmp_path, exact("lora", 0, {EASY: none})), EASY) is None


# Cost


def test_costs_are_those_of_the_trained_runs(tmp_path: Path) -> None:
    def run(method: str, seed: int, seconds: float, n_parameters: int | None) -> Result:
        return exact(method, seed, {EASY: {}}, training={"seconds": seconds, "n_parameters": n_parameters})

    found = study(
        tmp_path,
        exact("base", 0, {EASY: {}}),
        run("lora", 0, 100.0, 400_000),
        run("lora", 1, 200.0, 400_000),
        run("bayesian", 0, 110.0, 417_000),
        run("bayesian", 1, 260.0, 417_000),
        run("bayesian", 2, 999.0, 417_000),
        run("tfb", 4, 50.0, None),
    )
    rows = {row[0]: [*row[1:]] for row in cost_table(found).rows}
    assert rows == {
        "Base model": ["0", "–", "–", "1"],
        "LoRA": ["2", "150.0 ± 70.7", "400 000", "1"],
        "TFB": ["1", "50.0", "–", "8"],
        "Bayesian-LoRA": ["3", "456.3 ± 475.9", "417 000", "8"],
    }


def test_studies_are_those_of_each_training_set(tmp_path: Path) -> None:
    results = {"a": exact("lora", 0, {EASY: {}, CHALLENGE: {}}), "b": exact("lora", 0, {EASY: {}}, trained_on="a_set")}
    first, second = studies(read_results(write_results(tmp_path, results)))
    assert (first.trained_on, second.trained_on) == ("a_set", "arc_easy")
    assert (second.in_distribution, second.shifted) == ((EASY,), (CHALLENGE,))
    assert first.datasets == (EASY,)
