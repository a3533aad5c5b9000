"""The table of how many rows a proof needs, from the exact binomial test that `blora calibrate` makes."""

from itertools import count
from math import ceil

from benchmarks.markdown import markdown_table
from blora.decision.binomial import binomial_cdf
from blora.decision.gate import rows_behind_gate
from blora.decision.selective import rows_for_proof, rows_needed

__all__ = ["rows_to_prove", "usual_rows"]

DELTA = 0.05
MAX_FALSE_ALARMS = 0.05  # the default of `blora calibrate` for adapters with a familiarity
TARGETS = (0.2, 0.1, 0.05, 0.02, 0.01)
# The usual case: a share of the rows is answered, and a share of the target's risk is taken.
COVERAGE = 0.5
SHARE_OF_RISK = 0.5
POWER = 0.8


def rows_to_prove(name: str) -> str:
    """Return for each target risk the least number of rows that can prove it, and the number in the usual case."""
    header = ["target risk", "rows, if no answer is wrong", "the same without a gate", "rows for four proofs in five"]
    rows = [
        [
            f"{target:.0%}",
            f"{rows_behind_gate(MAX_FALSE_ALARMS, target, DELTA):,}",
            f"{rows_needed(target, DELTA):,}",
            f"{usual_rows(target):,}",
        ]
        for target in TARGETS
    ]
    return markdown_table(header, rows)


def usual_rows(target: float) -> int:
    """Return the number of rows whose proof succeeds with probability `POWER` at a threshold in the usual case.

    Args:
        target: the target risk; the answers at the threshold are wrong with `SHARE_OF_RISK` times this probability.
    """
    answered = next(n for n in count(1) if _success(n, target) >= POWER)
    return rows_for_proof(ceil(answered / COVERAGE))


def _success(n: int, target: float) -> float:
    """Return the probability that n answers prove the target."""
    most_wrong = next(k for k in count() if binomial_cdf(k, n, target) > DELTA) - 1
    return binomial_cdf(most_wrong, n, SHARE_OF_RISK * target)
