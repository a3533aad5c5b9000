"""A policy that withholds every answer of the adapter that was just written, said before anybody serves it."""

import sys
from pathlib import Path

from blora.adapter import CONFIG_FILE
from blora.config import AdapterConfig
from blora.decision.abstention import Policy, never_met

__all__ = ["warn_of_silence"]


def warn_of_silence(adapter: Path) -> None:
    """Prints to standard error which of the policy's thresholds no answer passes, if there are such."""
    config = AdapterConfig.from_json((adapter / CONFIG_FILE).read_text())
    if config.policy is None:
        return
    # Of questions that bring their own choices, those with two can be answered most surely.
    n_choices = len(config.prompt.choices) if config.prompt.choices is not None else 2
    for reason in never_met(Policy.from_mapping(config.policy), config.sampling.lapse, n_choices):
        print(
            f"warning: the policy withholds every answer: {reason.name.replace('_', ' ')}, which gets to "
            f"{reason.value:.3f} at a lapse rate of {config.sampling.lapse:.3f}, has to pass {reason.threshold:g}; "
            "choose a threshold within that, or let blora calibrate find one",
            file=sys.stderr,
        )
