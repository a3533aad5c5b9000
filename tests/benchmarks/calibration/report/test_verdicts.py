"""Each criterion both ways, at its limit, and where the runs that would tell are missing."""

from pathlib import Path

import pytest

from benchmarks.calibration.report.verdicts import Verdict, verdict_table, verdicts
from tests.benchmarks.calibration.report.results import CHALLENGE, EASY, Result, exact, numbers, study

LORA = {EASY: numbers(0.70, 1.0, 0.20, 0.50, 0.20), CHALLENGE: numbers(ece=0.30)}
TEMPERED_LORA = {EASY: numbers(0.70, 0.80, 0.05, 0.45, 0.19), CHALLENGE: numbers(ece=0.12)}
OURS = {EASY: numbers(0.70, 0.75, 0.03, 0.44, 0.18), CHALLENGE: numbers(ece=0.08)}


def lora(seed: int = 0) -> Result:
    return exact("lora", seed, LORA, TEMPERED_LORA)


def ours(seed: int = 0, **changes: float) -> Result:
    """As trained, with metrics of the set in distribution or, as `shifted`, the ECE of the other one replaced."""
    shifted = {"ece": changes.pop("shifted")} if "shifted" in changes else {}
    tests = {EASY: OURS[EASY] | changes, CHALLENGE: OURS[CHALLENGE] | shifted}
    return exact("bayesian", seed, tests)


def verdict(tmp_path: Path, start: str, *results: Result, treatment: str = "as trained") -> Verdict:
    """The one whose criterion starts so."""
    subjects = ("Bayesian-LoRA", f"Bayesian-LoRA, {treatment}")
    found = verdicts(study(tmp_path, *results))
    [one] = [v for v in found if v.criterion.startswith(start) and v.subject in subjects]
    return one


CRITERIA = {
    f"ECE of {EASY} at most": ({"ece": 0.04}, {"ece": 0.0401}, "0.0400"),
    f"NLL of {EASY}": ({"nll": 0.80}, {"nll": 0.8001}, "0.8000 (LoRA, with temperature)"),
    f"Brier of {EASY}": ({"brier": 0.45}, {"brier": 0.4501}, "0.4500 (LoRA, with temperature)"),
    f"AURC of {EASY}": ({"aurc": 0.19}, {"aurc": 0.1901}, "0.1900 (LoRA, with temperature)"),
    f"accuracy of {EASY}": ({"accuracy": 0.69}, {"accuracy": 0.6899}, "0.6900 (LoRA, as trained: 0.7000)"),
    f"ECE of {CHALLENGE}, shifted": ({"shifted": 0.09}, {"shifted": 0.0901}, "0.0900 (LoRA, with temperature: 0.1200)"),
}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_figure_at_its_limit_meets_it_and_one_beyond_misses(tmp_path: Path, criterion: str) -> None:
    at, beyond, limit = CRITERIA[criterion]
    for changes, met in ((at, True), (beyond, False)):
        found = verdict(tmp_path, criterion, lora(), ours(**changes))
        assert found.met is met
        assert found.limit == limit
    [figure] = beyond.values()
    assert found.ours == f"{figure:.4f}"


def test_every_treatment_is_judged(tmp_path: Path) -> None:
    found = study(tmp_path, lora(), exact("bayesian", 0, OURS, {EASY: numbers(ece=0.5)}))
    judged = {v.subject: v.met for v in verdicts(found) if v.criterion.startswith(f"ECE of {EASY}")}
    assert judged == {"Bayesian-LoRA, as trained": True, "Bayesian-LoRA, with temperature": False}


@pytest.mark.parametrize("rival", ["base", "lora_best", "tfb"])
def test_the_strongest_single_model_is_the_limit(tmp_path: Path, rival: str) -> None:
    better = exact(rival, 0, {EASY: numbers(nll=0.6)}, {EASY: numbers(nll=0.7)})
    found = verdict(tmp_path, f"NLL of {EASY}", lora(), ours(), better)
    assert (found.met, found.ours) == (False, "0.7500")
    assert found.limit == f"0.6000 ({better['label']}, as trained)"


def test_an_ensemble_and_another_bayesian_lora_are_no_baselines(tmp_path: Path) -> None:
    best = {EASY: numbers(nll=0.1)}
    others = (exact("ensemble", 0, best), exact("bayesian", 0, best, label="Bayesian-LoRA, flow"))
    assert verdict(tmp_path, f"NLL of {EASY}", lora(), ours(), *others).met


def test_only_shared_seeds_are_compared(tmp_path: Path) -> None:
    rival = exact("tfb", 1, {EASY: numbers(nll=0.5)}, {EASY: numbers(nll=0.5)})
    found = verdict(tmp_path, f"NLL of {EASY}", lora(0), lora(1), ours(0), ours(1, nll=0.45), rival)
    # Over both seeds 0.6 against LoRA's 0.8; over seed 1 alone 0.45 against 0.5, which leaves less room.
    assert (found.ours, found.limit, found.met) == ("0.4500", "0.5000 (TFB, as trained)", True)


def test_an_untrained_model_is_compared_with_every_seed(tmp_path: Path) -> None:
    base = exact("base", None, {EASY: numbers(nll=0.5)})
    found = verdict(tmp_path, f"NLL of {EASY}", lora(0), lora(1), ours(0, nll=0.6), ours(1, nll=0.8), base)
    assert (found.ours, found.limit) == ("0.7000", "0.5000 (Base model, as trained)")


def test_means_over_seeds_are_judged(tmp_path: Path) -> None:
    found = verdict(tmp_path, f"ECE of {EASY}", ours(0, ece=0.02), ours(1, ece=0.05))
    assert (found.ours, found.met) == ("0.0350", True)


def test_without_lora_nothing_relative_to_it_can_be_told(tmp_path: Path) -> None:
    for criterion in CRITERIA:
        found = verdict(tmp_path, criterion, ours())
        assert found.met is (True if criterion.startswith(f"ECE of {EASY}") else None)


def test_without_lora_with_temperature_not_every_baseline_is_met_but_one_can_be_missed(tmp_path: Path) -> None:
    untempered = exact("lora", 0, LORA)
    assert verdict(tmp_path, f"NLL of {EASY}", untempered, ours()).met is None
    assert verdict(tmp_path, f"NLL of {EASY}", untempered, ours(nll=1.1)).met is False
    assert verdict(tmp_path, f"ECE of {CHALLENGE}", untempered, ours()).met is None


def test_a_treatment_that_was_not_run_cannot_be_told(tmp_path: Path) -> None:
    found = [v for v in verdicts(study(tmp_path, lora(), ours())) if v.subject == "Bayesian-LoRA, with temperature"]
    assert len(found) == 6
    assert {(v.ours, v.limit, v.met) for v in found} == {("–", "–", None)}


def test_the_table_says_met_missed_or_cannot_tell(tmp_path: Path) -> None:
    table = verdict_table(study(tmp_path, lora(), ours(ece=0.9)))
    words = [row[-1] for row in table.rows]
    assert words == ["missed", *["met"] * 5, *["cannot tell"] * 6]
    assert table.rows[0][2:4] == ("0.9000", "0.0400")
