"""Signals of foreign questions and modest probabilities: what they are by definition, and a run on a toy set."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.elsewhere.__main__ import measure
from benchmarks.elsewhere.modesty import density_aware, temperatures
from benchmarks.elsewhere.reading import log_perplexities, read
from benchmarks.elsewhere.sets import SETS, Elsewhere, load
from benchmarks.elsewhere.signals import found_at, told_apart
from benchmarks.elsewhere.table import foreign_probabilities, foreign_signals
from benchmarks.peers.sets import DATA
from blora.base_model import load_base_model
from blora.inference.packing import PackedRow
from tests.benchmarks.test_peers import linear, pointer
from tests.scenarios import tiny_base


def test_a_density_aware_temperature_finds_that_distant_rows_are_overconfident() -> None:
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(4000, generator=generator) * 4 - 2
    sure = torch.tensor([math.log(0.95), math.log(0.05)]).expand(1, 4000, 2)
    right = torch.rand(4000, generator=generator) < torch.where(distances > 0, 0.7, 0.95)
    log_temperature, slope = density_aware(sure, distances, (~right).long(), 0.0)
    assert slope > 0.3
    near, far = temperatures(torch.tensor([-1.0, 2.0]), log_temperature, slope)
    assert far > 1.5 * near


def test_a_perfect_signal_finds_every_foreign_row() -> None:
    test, foreign = torch.arange(100.0), torch.arange(200.0, 210.0)
    assert (told_apart(test, foreign), found_at(test, foreign)) == (1, 1)
    assert (told_apart(foreign, test), found_at(foreign, test)) == (0, 0)


def test_a_perplexity_is_that_of_a_row_alone() -> None:
    base = tiny_base()
    rows = [PackedRow(tuple(range(1, n)), (), "none") for n in (9, 5, 3)]
    found = log_perplexities(base, rows)
    for row, value in zip(rows, found, strict=True):
        tokens = torch.tensor([row.prompt])
        with torch.no_grad():
            log_probs = base.model(input_ids=tokens).logits.float().log_softmax(-1)
        expected = -log_probs[0, :-1].gather(1, tokens[0, 1:, None]).mean()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="needs the question-answering sets in ../shared/data")
@pytest.mark.parametrize("name", SETS)
def test_every_set_loads_with_its_foreign_rows_in_their_places(name: str) -> None:
    elsewhere = load(name)
    assert sum(elsewhere.sizes.values()) == len(elsewhere.task.foreign)
    for place, size in zip(elsewhere.places.values(), elsewhere.sizes.values(), strict=True):
        assert len(elsewhere.task.foreign[place]) == size > 0


@pytest.mark.model
@pytest.mark.parametrize("kind", ["linear", "pointer"])
def test_a_set_is_measured_and_shown(kind: str, tmp_path: Path) -> None:
    task = replace(linear() if kind == "linear" else pointer(), name="demo" if kind == "linear" else "arc_easy")
    base = load_base_model("embedded", dtype="float32")
    half = len(task.foreign) // 2
    elsewhere = Elsewhere(task, {"some": half, "others": len(task.foreign) - half}, labelled=kind == "pointer")
    kept = tmp_path / "kept" / "toy.pt"
    result = measure(elsewhere, read(base, elsewhere, kept))
    assert measure(elsewhere, read(base, elsewhere, kept)) == result
    assert set(result["foreign"]) == {"some", "others"}
    told = result["foreign"]["some"]["signals"]
    assert ("energy" in told) == (kind == "linear")
    assert all(0 <= figures[name] <= 1 for figures in told.values() for name in ("auroc", "found"))
    about = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "base_model": "tiny", "dtype": "float32"}
    shown = foreign_signals([result | about])
    assert all(f"| {name} |" in shown for name in told)
    assert "test |" in foreign_probabilities([result | about])
