"""A warning of a policy under which the adapter that was just written abstains from every question."""

import sys
from collections.abc import Mapping, Sequence

from blora.decision.abstention import Policy, never_met

__all__ = ["warn_of_silence"]

LIMITS = {
    "low_confidence": "confidence gets no higher than {reached:.3f}, below the threshold {threshold:g}",
    "high_predictive_entropy": "predictive entropy gets no lower than {reached:.3f}, above the threshold {threshold:g}",
}


def warn_of_silence(policy: Mapping[str, float] | None, choices: Sequence[str] | None, lapse: float) -> None:
    """Prints to standard error which of the policy's thresholds no answer passes, if there are such.

    Args:
        policy: the adapter's own, None for none.
        choices: its fixed labels, None where each question brings its own.
        lapse: its lapse rate.
    """
    if policy is None:
        return
    # Of questions that bring their own choices, those with two can be answered most surely.
    for reason in never_met(Policy.from_mapping(policy), lapse, len(choices) if choices is not None else 2):
        limit = LIMITS[reason.name].format(reached=reason.value, threshold=reason.threshold)
        print(
            "warning: with this policy the adapter abstains from every question: at a lapse rate of "
            f"{lapse:.3f} {limit}; choose a threshold within that, or let blora calibrate find one",
            file=sys.stderr,
        )
