"""A warning of a policy under which the adapter that was just written abstains from every question."""

import sys
from collections.abc import Mapping, Sequence

from blora.decision.abstention import Policy, never_met
from blora.scores import SCORES

__all__ = ["warn_of_silence"]

_SCORES = {score.reason: score for score in SCORES.values()}


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
        score = _SCORES[reason.name]
        best, beyond = ("higher", "below") if score.high_is_certain else ("lower", "above")
        print(
            "warning: with this policy the adapter abstains from every question: at a lapse rate of "
            f"{lapse:.3f} {score.title} gets no {best} than {reason.value:.3f}, {beyond} the threshold "
            f"{reason.threshold:g}; choose a threshold within that, or let blora calibrate find one",
            file=sys.stderr,
        )
