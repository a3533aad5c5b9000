"""The comparison of heads from few rows: all ways judge the same answers, and gains are differences."""

from dataclasses import replace

import pytest
import torch

from benchmarks.few_rows import cross_validated, measure, summary
from benchmarks.peers.reading import ReadSet, Rows
from blora.decision.metrics import metrics
from blora.training.rows.packed import labels_of
from tests.training.head.test_fit import CONFIG, linear_task


def rows(n: int, seed: int) -> Rows:
    features, labelled = linear_task(n, seed)
    return Rows(labelled, replace(features, prompt=features.states))


def test_both_ways_judge_the_same_answers_of_heads_from_a_part_of_the_rows() -> None:
    read = ReadSet(CONFIG, rows(120, 1), rows(1, 2), rows(300, 3), None, None, 0.0)
    divisions = [measure(read, 100, seed) for seed in range(2)]
    assert divisions[0] != divisions[1]
    found = summary(divisions)
    for metric in ("nll", "ece"):
        values = [one["alone"][metric] for one in divisions]
        assert found["alone"][metric] == pytest.approx(sum(values) / 2)
        assert all(0 < value < 3 for value in values)
    for gain, before, after in (("gain", "alone", "out_of_fold"), ("gain_on_all", "out_of_fold", "on_all")):
        assert found[gain]["mean"] == pytest.approx(found[before]["nll"] - found[after]["nll"])
        assert found[gain]["mean"] != 0


def test_more_rows_make_a_better_head_and_the_regression_reads_its_own() -> None:
    read = ReadSet(CONFIG, rows(400, 1), rows(1, 2), rows(1000, 3), None, None, 0.0)
    found = summary([measure(read, 60, seed) for seed in range(8)])
    assert found["gain_on_all"]["mean"] > 0
    probs = cross_validated(rows(200, 4), read.test)
    assert probs.sum(-1).numpy() == pytest.approx(1)
    guess = metrics(torch.full_like(probs, 1 / probs.shape[1]), labels_of(read.test.rows))
    assert metrics(probs, labels_of(read.test.rows)).nll < guess.nll - 0.1


def test_with_enough_rows_both_ways_are_one() -> None:
    read = ReadSet(CONFIG, rows(1000, 1), rows(1, 2), rows(300, 3), None, None, 0.0)
    found = measure(read, 1000, 0)
    assert found["alone"] == pytest.approx(found["out_of_fold"])
