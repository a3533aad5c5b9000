"""The comparison of recalibrations from few rows: both ways judge the same answers, and gains are their differences."""

from dataclasses import replace

import pytest

from benchmarks.few_rows import measure, summary
from benchmarks.peers.reading import ReadSet, Rows
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
    assert found["gain"] == pytest.approx(found["alone"]["nll"] - found["out_of_fold"]["nll"])
    assert found["gain"] != 0


def test_with_enough_rows_both_ways_are_one() -> None:
    read = ReadSet(CONFIG, rows(1000, 1), rows(1, 2), rows(300, 3), None, None, 0.0)
    found = measure(read, 1000, 0)
    assert found["alone"] == pytest.approx(found["out_of_fold"])
