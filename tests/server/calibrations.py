"""A calibration for adapters of the fake engine."""

from blora.decision.asks import Ask
from blora.decision.binomial import clopper_pearson
from blora.decision.calibration import Binding, Calibration, CalibrationRows, ConformalQuantile, FormName
from blora.decision.curves import ReliabilityBin
from blora.decision.gate import Gate
from blora.decision.selective import Level

EMPTY = ReliabilityBin(0, None, None)


def calibration(
    digest: str,
    *,
    quantile: float = 0.8,
    forms: tuple[FormName, ...] = ("prompt",),
    fewest_choices: int = 2,
    most_choices: int = 3,
    gate: Gate | None = None,
) -> Calibration:
    """Return a calibration proved at 0.05 (confidence 0.9, the default) and at 0.2 (entropy 0.7), but not at 0.01.

    Its 400 rows are all of confidence 0.9; of 300 proof rows 180 are answered, all rightly.
    """
    proof = {"expected_coverage": 0.6, "coverage": 0.6, "error": 0.0, "upper_bound": clopper_pearson(0, 180, 0.05)}
    return Calibration(
        binding=Binding(
            adapter_digest=digest,
            dtype="float64",
            n_samples=4,
            seed=0,
            scoring="text",
            temperature=1.0,
            stop_error=None,
        ),
        rows=CalibrationRows(
            source="rows.jsonl",
            digest="sha256:" + "5" * 64,
            split="test",
            forms=forms,
            fewest_choices=fewest_choices,
            most_choices=most_choices,
            n_rows=400,
            n_tuning=100,
            n_proof=300,
            seed=0,
        ),
        delta=0.05,
        asks=(Ask(target_risk=0.05, delta=0.05, seed=0, dtype="float64"),),
        target_risk=0.05,
        coverage=0.9,
        levels=(
            Level(target_risk=0.01, score="confidence", expected_coverage=0.0),
            Level(target_risk=0.05, score="confidence", threshold=0.9, **proof),
            Level(target_risk=0.2, score="predictive_entropy", threshold=0.7, **proof),
        ),
        quantiles=(ConformalQuantile(coverage=0.9, quantile=quantile),),
        reliability=(*[EMPTY] * 13, ReliabilityBin(400, 0.9, 0.9), EMPTY),
        curve=((0.5, 0.02), (1.0, 0.1)),
        gate=gate,
    )
