"""Mirrored draws of a head are compared with independent ones on the same rows."""

import pytest

from benchmarks.peers import mirrored
from benchmarks.peers.reading import read_set
from blora.base_model import load_base_model
from tests.benchmarks.test_peers import linear


@pytest.mark.model
def test_mirrored_draws_are_measured_and_shown_beside_independent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrored, "COUNTS", (16, 64))
    read = read_set(load_base_model("embedded", dtype="float32"), linear())
    rows = list(mirrored.measured(read))
    assert [(row["n_draws"], row["mirrored"]) for row in rows] == [
        (16, False),
        (16, True),
        (64, False),
        (64, True),
    ]
    independent, paired = rows[:2]
    assert 0 < paired["spread"]["validation_nll"] < independent["spread"]["validation_nll"]
    about = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "base_model": "tiny", "dtype": "float32"}
    shown = mirrored.table([about | {"set": "toy", "n_seeds": 8, "rows": rows}])
    assert f"| toy | 16 | {independent['validation_nll']:.3f} ±" in shown
    assert f"| {paired['validation_nll']:.3f} ±" in shown
