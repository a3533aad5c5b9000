"""Warnings about an adapter that was just written: few rows have judged it, or its policy withholds every answer."""

import logging
from collections.abc import Mapping, Sequence

from blora.decision.abstention import Policy, never_met
from blora.decision.temperature import FEW_ROWS

__all__ = ["warn_of_few_rows", "warn_of_silence"]

logger = logging.getLogger(__name__)

LIMITS = {
    "low_confidence": "confidence gets no higher than {reached:.3f}, below the threshold {threshold:g}",
    "high_predictive_entropy": "predictive entropy gets no lower than {reached:.3f}, above the threshold {threshold:g}",
}


def warn_of_few_rows(n_rows: int) -> None:
    """Log a warning if validation rows are few."""
    if n_rows < FEW_ROWS:
        logger.warning(
            "there are only %d validation rows: the recalibration stays close to none unless all of them ask for more, "
            "and their accuracy, NLL and ECE say little; bring at least %d, better several hundred",
            *(n_rows, FEW_ROWS),
        )


def warn_of_silence(policy: Mapping[str, float] | None, choices: Sequence[str] | None, lapse: float) -> None:
    """Log a warning for each threshold of a policy that no answer of an adapter can pass.

    Args:
        policy: the adapter's own, None for none.
        choices: its fixed labels, None where each question brings its own.
        lapse: its lapse rate.
    """
    if policy is None:
        return
    # Of questions that bring their own choices, those with two can be answered most surely.
    for reason in never_met(Policy.from_mapping(policy), lapse, len(choices) if choices is not None else 2):
        logger.warning(
            "with this policy the adapter abstains from every question: at a lapse rate of %.3f %s; choose a threshold "
            "within that, or let blora calibrate find one",
            *(lapse, LIMITS[reason.name].format(reached=reason.value, threshold=reason.threshold)),
        )
