"""The gate against the exact binomial, and against references whose false alarms are known."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from blora.adapter.calibration_file import read_calibrations, store_calibration
from blora.config.head import MOST_REFERENCE
from blora.decision.familiarity import p_value
from blora.decision.gate import Gate, alarms_allowed, rows_behind_gate
from blora.errors import ConfigError
from blora.scores import SCORES
from tests.blora.decision.test_calibrate import made


@pytest.mark.parametrize(("n", "max_false_alarms", "delta"), [(200, 0.1, 0.05), (59, 0.05, 0.05), (300, 0.02, 0.2)])
def test_the_share_that_is_withheld_exceeds_its_limit_with_probability_delta(
    n: int, max_false_alarms: float, delta: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = 1e4  # no two distances are close to one another
    drawn = (wide * torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(2000))
    gates = [Gate.of(distances, max_false_alarms, delta) for distances in drawn]
    exceeds = torch.tensor([1 - gate.distance / wide > max_false_alarms for gate in gates])  # of uniform distances
    [k] = {gate.n_beyond for gate in gates}
    exact = binom.cdf(k, n, max_false_alarms)
    assert exact <= delta < binom.cdf(k + 1, n, max_false_alarms)
    assert float(exceeds.double().mean()) == pytest.approx(exact, abs=4 * math.sqrt(delta * (1 - delta) / 2000))


@given(st.integers(1, 3000), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_the_alarms_allowed_are_those_of_the_exact_binomial(n: int, max_false_alarms: float, delta: float) -> None:
    k = alarms_allowed(n, max_false_alarms, delta)
    assert -1 <= k < n
    assert k == -1 or binom.cdf(k, n, max_false_alarms) <= delta * (1 + 1e-9)
    assert binom.cdf(k + 1, n, max_false_alarms) > delta * (1 - 1e-9)


def test_the_rows_behind_a_gate_that_withholds_nearly_everything_are_found_in_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def counted(n: int, *limits: float) -> int:
        tried.append(n)
        return alarms_allowed(n, *limits)

    monkeypatch.setattr("blora.decision.gate.alarms_allowed", counted)
    assert rows_behind_gate(0.9999, 0.05, 0.05) == 626129
    assert len(tried) < 100


@pytest.mark.parametrize("step", [0.0, 0.25])
def test_a_question_is_unfamiliar_exactly_where_it_is_beyond_the_gate(step: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(150, generator=generator)
    reference = (reference / step).round() * step if step else reference  # with ties, and without
    gate = Gate.of(reference, 0.1, 0.05)
    asked = torch.cat([reference, torch.linspace(-4, 4, 501)])
    known = p_value(asked, torch.tensor(gate.reference))
    fails = [SCORES["familiarity"].fails(value, gate.min_familiarity) for value in known.tolist()]
    assert fails == (asked > gate.distance).tolist()
    assert 0 < sum(fails) < len(fails)
    assert sum(fails[:150]) <= gate.n_beyond


def test_the_gate_is_at_a_distance_that_one_row_alone_has() -> None:
    distances = torch.arange(200.0)
    assert Gate.of(distances, 0.1, 0.05).distance == 187
    distances[183:191] = 183  # eight questions with one prompt
    distances[191] = 192 - 1e-5
    gate = Gate.of(distances, 0.1, 0.05)
    assert (gate.n_beyond, gate.distance) == (6, 193)
    distances[193] = 194
    gate = Gate.of(distances, 0.1, 0.05)
    assert (gate.n_beyond, gate.distance) == (4, 195)
    distances[195] = 194
    gate = Gate.of(distances, 0.1, 0.05)
    assert (gate.n_beyond, gate.distance) == (3, 196)
    for n_shared in (13, 100):  # the gate may be at any of the farthest 13
        shared = torch.cat([torch.arange(200.0 - n_shared), torch.full((n_shared,), 500.0)])
        with pytest.raises(ConfigError, match="share their distances.*expected one .*: allow max_false_alarms 1"):
            Gate.of(shared, 0.1, 0.05)


@pytest.mark.parametrize(
    ("max_false_alarms", "delta", "needed"), [(0.05, 0.05, 59), (0.1, 0.05, 29), (0.01, 0.1, 230), (0.5, 0.25, 2)]
)
def test_too_few_rows_are_refused_with_the_number_needed(max_false_alarms: float, delta: float, needed: int) -> None:
    with pytest.raises(ConfigError, match=f"got {needed - 1} rows .*, expected at least {needed}: bring more"):
        Gate.of(torch.rand(needed - 1, generator=torch.Generator()), max_false_alarms, delta)
    enough = torch.rand(needed, generator=torch.Generator())
    assert Gate.of(enough, max_false_alarms, delta).distance == float(enough.max())


def test_of_very_many_rows_the_first_ones_serve() -> None:
    distances = torch.rand(MOST_REFERENCE + 50, generator=torch.Generator().manual_seed(0))
    assert Gate.of(distances, 0.05, 0.05) == Gate.of(distances[:MOST_REFERENCE], 0.05, 0.05)


@pytest.mark.parametrize(("n", "n_beyond"), [(59, 0), (300, 8)])
def test_a_gate_is_stored_and_read_back_to_the_last_bit(n: int, n_beyond: int, tmp_path: Path) -> None:
    gate = Gate.of(torch.randn(n, generator=torch.Generator().manual_seed(0)), 0.05, 0.05)
    assert gate.n_beyond == n_beyond
    store_calibration(tmp_path, dataclasses.replace(made(), gate=gate))
    [known] = read_calibrations(tmp_path)
    assert known.gate == gate


GATE: dict[str, Any] = {"max_false_alarms": 0.05, "n_beyond": 1, "reference": (0.0, 1.0, 2.0)}


@pytest.mark.parametrize("change", [{"n_beyond": 3}, {"reference": (0.0, 2.0, 1.0)}])
def test_a_gate_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    assert Gate(**GATE).distance == 1.0
    with pytest.raises(ConfigError, match="expected"):
        Gate(**(GATE | change))
