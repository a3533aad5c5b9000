"""Warnings of an answer in words."""

__all__ = ["caution"]

_WORDS = {
    "not_calibrated": "the calibration does not hold for the way the adapter is served, so nothing is proved about its "
    "threshold",
    "without_head": "the adapter's head had no part in the answer",
    "shadowed_choice": "one choice is the beginning of another, and the longer one can never win",
    "mostly_guesses": "the question is farther from the training rows than every validation row, so the probabilities "
    "are mostly guesses",
    "other_instructions": "the question has other instructions than the adapter's own, which the adapter does not "
    "read, so nothing is proved about the answer",
    "other_descriptions": "the question has other descriptions than the adapter's own, which the adapter does not "
    "read, so nothing is proved about the answer",
    "other_input": "the input has items of others than users, as no row of the calibration had, so nothing is proved "
    "about the answer",
    "unchecked_wording": "the question has instructions or descriptions, which the adapter does not read, and has none "
    "of its own to compare with",
}


def caution(warning: str) -> str:
    """Return the name of a warning with its meaning, or the name alone if a newer server has added it."""
    return f"{warning} ({_WORDS[warning]})" if warning in _WORDS else warning
