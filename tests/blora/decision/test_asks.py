"""Asks of calibration rows: which of them add up, and what is remembered of the rows."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from blora.decision.asks import VLLM, Ask, AskedRows, earlier_asks, total_delta
from blora.decision.selective import Evidence, Stage, certify
from blora.errors import ConfigError
from blora.scores import ScoreName

FIRST, SECOND, THIRD = (Ask(target_risk=target, delta=0.05, seed=0, dtype="bfloat16") for target in (0.15, 0.2, 0.25))
ROWS = AskedRows(
    adapter_digest="sha256:" + "a" * 64,
    digest="sha256:" + "b" * 64,
    n_rows=3,
    fingerprints="000000000001000000000002000000000003",
    asks=(FIRST, SECOND),
)
OTHER_FILE = {"digest": "sha256:" + "c" * 64}


def test_three_asks_of_the_same_rows_spend_three_deltas() -> None:
    earlier = earlier_asks([ROWS], ROWS, THIRD)
    assert earlier == (FIRST, SECOND)
    assert total_delta((*earlier, THIRD)) == 0.15


@pytest.mark.parametrize(
    ("changes", "overlap"),
    [
        ({"n_rows": 2, "fingerprints": "000000000001000000000002"}, True),  # the first rows of the same file
        ({**OTHER_FILE, "fingerprints": "000000000003000000000009"}, True),  # one row in another file
        ({**OTHER_FILE, "fingerprints": "000000000009"}, False),
        ({**OTHER_FILE, "fingerprints": ""}, False),
        ({"fingerprints": ""}, True),  # a calibration that remembers the file alone
        ({"adapter_digest": "sha256:" + "d" * 64}, True),  # the adapter was trained again
    ],
)
def test_asks_of_rows_that_overlap_add_up_and_fresh_rows_start_anew(changes: dict[str, object], overlap: bool) -> None:
    new = dataclasses.replace(ROWS, asks=(THIRD,), **changes)  # type: ignore[arg-type]
    assert earlier_asks([ROWS], new, THIRD) == ((FIRST, SECOND) if overlap else ())


def test_the_same_ask_again_is_no_other_chance() -> None:
    assert earlier_asks([ROWS], ROWS, FIRST) == (SECOND,)


def test_the_same_ask_again_is_another_chance_through_vllm_which_computes_otherwise_each_time() -> None:
    through = dataclasses.replace(FIRST, dtype=VLLM)
    rows = dataclasses.replace(ROWS, asks=(through, through))
    assert total_delta((*earlier_asks([rows], rows, through), through)) == 0.15


@pytest.mark.parametrize(
    "change",
    [
        *({"target_risk": value} for value in (0.0, 1.0, math.nan)),
        *({"delta": value} for value in (0.0, 0.51, math.nan)),
        *({"max_false_alarms": value} for value in (0.0, 1.01, math.nan)),
        *({"max_missed": value} for value in (0.0, 1.01, math.nan)),
        *({"seed": value} for value in (-1, 2**63)),
        {"dtype": ""},
    ],
)
def test_an_ask_that_nothing_could_prove_is_refused(change: dict[str, Any]) -> None:
    dataclasses.replace(FIRST, max_false_alarms=1.0, max_missed=1.0, seed=2**63 - 1)
    with pytest.raises(ConfigError, match=f"got {next(iter(change))} = "):
        dataclasses.replace(FIRST, **change)


@pytest.mark.parametrize("change", [{"delta": 0.1}, {"seed": 1}, {"target_risk": 0.16}, {"dtype": "float32"}])
def test_an_ask_that_differs_in_anything_is_another_one(change: dict[str, Any]) -> None:
    assert earlier_asks([ROWS], ROWS, dataclasses.replace(FIRST, **change)) == (FIRST, SECOND)


def test_the_same_ask_of_other_contents_of_the_adapter_is_another_one() -> None:
    again = dataclasses.replace(ROWS, adapter_digest="sha256:" + "d" * 64)
    assert earlier_asks([ROWS], again, FIRST) == (FIRST, SECOND)


def test_the_same_ask_of_more_rows_is_another_one() -> None:
    more = dataclasses.replace(ROWS, n_rows=4, fingerprints=ROWS.fingerprints + "000000000004")
    assert earlier_asks([ROWS], more, FIRST) == (FIRST, SECOND)


def test_rows_that_guarantee_nothing_any_more_are_refused() -> None:
    asks = tuple(Ask(target_risk=0.1, delta=0.25, seed=seed, dtype="bfloat16") for seed in range(3))
    rows = dataclasses.replace(ROWS, asks=asks)
    with pytest.raises(
        ConfigError,
        match=r"got 4 calibration attempts on the same rows with a delta of 1 in total.*no attempt has used",
    ):
        earlier_asks([rows], rows, Ask(target_risk=0.1, delta=0.25, seed=3, dtype="bfloat16"))
    assert earlier_asks([rows], rows, Ask(target_risk=0.1, delta=0.24, seed=3, dtype="bfloat16")) == asks


def test_an_attempt_names_its_dtype() -> None:
    with pytest.raises(ConfigError, match="got dtype = '', expected the dtype of the base model"):
        dataclasses.replace(FIRST, dtype="")


@pytest.mark.parametrize("delta", [0.0, 4e-13, 9e-10, 0.51])
def test_a_delta_that_a_total_would_not_state_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match=rf"got delta = {delta}, expected a number from 1e-09 to 0.5: choose one"):
        dataclasses.replace(FIRST, delta=delta)


@pytest.mark.parametrize("delta", [1e-9, 0.5])
def test_a_total_states_the_smallest_delta_and_the_largest(delta: float) -> None:
    assert total_delta([dataclasses.replace(FIRST, delta=delta)]) == delta


@pytest.mark.parametrize("fingerprints", ["0123", "0" * 13, "x" * 12])
def test_fingerprints_are_twelve_hex_digits_a_row(fingerprints: str) -> None:
    with pytest.raises(ConfigError, match="12 hex digits a row"):
        dataclasses.replace(ROWS, fingerprints=fingerprints)


def test_asking_again_until_it_is_proved_errs_more_often_than_one_ask_and_no_more_than_all_together() -> None:
    asks = [Ask(target_risk=0.299, delta=0.1, seed=seed, dtype="bfloat16") for seed in range(5)]
    n_runs, proved = 400, 0
    for run in range(n_runs):
        generator = torch.Generator().manual_seed(run)
        confidence: ScoreName = "confidence"  # which says nothing: every answer is wrong with probability 0.3
        stage = Stage({confidence: torch.rand(200, generator=generator)}, torch.rand(200, generator=generator) < 0.3)
        proved += any(
            certify(Evidence.gather([stage], seed=ask.seed), target_risk=ask.target_risk, delta=ask.delta).threshold
            is not None
            for ask in asks
        )
    assert asks[0].delta < proved / n_runs <= total_delta(asks)
