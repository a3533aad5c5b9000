"""The table of how many rows a proof needs, against calibrations of simulated rows."""

import pytest
import torch

from benchmarks.row_table import COVERAGE, SHARE_OF_RISK, usual_rows
from blora.decision.selective import Evidence, Level, Stage, certify

N_CALIBRATIONS = 200


def calibration(n_rows: int, target: float, error: float, seed: int) -> Level:
    """Calibrate on rows of which a share is answered with this error, rising with the score; the others are guesses."""
    generator = torch.Generator().manual_seed(seed)
    entropies, chance = torch.rand(2, n_rows, generator=generator, dtype=torch.float64)
    wrong = chance < torch.where(entropies < COVERAGE, 2 * error * entropies / COVERAGE, 0.5)
    stage = Stage({"predictive_entropy": entropies}, wrong)
    return certify(Evidence.gather([stage], seed=seed), target_risk=target, delta=0.05)


@pytest.mark.parametrize("target", [0.2, 0.1, 0.05])
def test_with_the_usual_number_of_rows_about_four_proofs_in_five_succeed(target: float) -> None:
    levels = [calibration(usual_rows(target), target, SHARE_OF_RISK * target, seed) for seed in range(N_CALIBRATIONS)]
    assert 0.7 < sum(level.threshold is not None for level in levels) / N_CALIBRATIONS < 0.9
