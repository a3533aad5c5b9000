"""Warnings about the rows of an adapter, and about what they prove."""

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from difflib import get_close_matches
from typing import Literal

from blora.decision.by_choice import beyond
from blora.decision.calibration import Calibration
from blora.decision.temperature import FEW_ROWS

__all__ = [
    "CLOSE",
    "warn_of_few_rows",
    "warn_of_left_out",
    "warn_of_odd_labels",
    "warn_of_reference",
    "warn_of_two_labels",
    "warn_of_unseen_choices",
    "warn_of_worse_choices",
]

# Likeness, of at most 1, from which two texts may be one text that is misspelt.
CLOSE = 0.8
# A label of at most FEW rows may be a misspelling of another that has MANY_TIMES as many.
FEW, MANY_TIMES = 2, 10
NAMED = 5  # most choices or findings named in a warning

# Texts by which tables write an empty cell.
NO_LABELS = frozenset({"nan", "NaN", "NAN", "<NA>", "null", "NULL", "NaT"})
Use = Literal["training", "validation", "calibration"]
# What follows if a choice is the label of no row.
WITHOUT_ROWS: dict[Use, str] = {
    "training": "nothing is learnt about it, and it is hardly ever answered; add rows, or leave the choice out",
    "validation": "the recalibration is fitted without it; add rows of it, or take rows as they will be asked",
    "calibration": "the guarantee is about questions of the others; add rows of it, or take rows as they will be asked",
}

logger = logging.getLogger(__name__)


def warn_of_few_rows(n_rows: int, n_recalibrating: int) -> None:
    """Log a warning if there are few validation rows, or few rows that recalibrate."""
    if n_rows < FEW_ROWS:
        weak = "the recalibration stays weak unless all of them agree, and " if n_recalibrating < FEW_ROWS else ""
        logger.warning(
            "there are only %d validation rows: %stheir accuracy, NLL and ECE are unreliable; use at least %d, better "
            "several hundred",
            *(n_rows, weak, FEW_ROWS),
        )


def warn_of_reference(n_rows: int, n_trained_on: int, *, guesses: bool) -> None:
    """Log warnings if the rows that a familiarity's p-values are among are few, or if the adapter was trained on them.

    Args:
        n_rows: number of these rows.
        n_trained_on: number of those that the adapter was trained on.
        guesses: whether answers to questions that are far beyond them become guesses.
    """
    if n_rows < FEW_ROWS:
        none = "" if guesses else ", and answers to questions that are far from all of them stay as confident as any"
        logger.warning(
            "there are only %d reference rows: no question can be less familiar than 1/%d%s; use at least %d",
            *(n_rows, n_rows + 1, none, FEW_ROWS),
        )
    if n_trained_on:
        logger.warning(
            "the adapter was trained on %d of the %d reference rows: it answers them too well, so that too few answers "
            "to other questions become guesses; bring further rows as validation rows",
            *(n_trained_on, n_rows),
        )


def warn_of_left_out(n_left_out: int, n_requests: int, name: str) -> None:
    """Log a warning that some rows are requests without the question of the adapter."""
    logger.warning(
        "%d of %d requests have no question named %r and are left out: what is measured is of the others alone",
        *(n_left_out, n_requests, name),
    )


def warn_of_odd_labels(labels: Iterable[str]) -> None:
    """Log a warning for each label that may be a misspelling of another one, which would train a choice of its own."""
    counts = Counter(labels)
    plain: dict[str, str] = {}
    for label in counts.keys() & NO_LABELS:
        logger.warning(
            "the label %r, of %d rows, may be an empty cell: as it is, it is a choice of its own", label, counts[label]
        )
    for label, count in counts.most_common():
        usual = plain.setdefault(" ".join(label.split()).casefold(), label)
        if usual == label and count <= FEW:
            usual = next(iter(get_close_matches(label, [one for one in counts if one != label], 1, CLOSE)), label)
            usual = usual if counts[usual] >= MANY_TIMES * count else label
        if usual != label:
            logger.warning(
                "the label %r, of %d rows, may be a misspelling of %r, of %d: as it is, it is a choice of its own",
                *(label, count, usual, counts[usual]),
            )


def warn_of_unseen_choices(choices: Sequence[str], labels: Iterable[int], use: Use = "training") -> None:
    """Log a warning if fixed choices are the label of no row.

    Args:
        choices: the fixed choices.
        labels: the index of the label of each row.
        use: what the rows are for.
    """
    seen = set(labels)
    unseen = [choice for place, choice in enumerate(choices) if place not in seen]
    if unseen:
        named = ", ".join(map(repr, unseen[:NAMED])) + (" ..." if len(unseen) > NAMED else "")
        logger.warning(
            "no %s row has the label %s (%d of %d choices): %s",
            *(use, named, len(unseen), len(choices), WITHOUT_ROWS[use]),
        )


def warn_of_worse_choices(calibration: Calibration) -> None:
    """Log a warning if a target that is proved for all answers together evidently fails for some choice.

    Questions of a choice are not compared with the target if `max_missed` is another limit for them.
    """
    answers, questions = beyond(calibration.choices, calibration.target_risk)
    found = [f"of {one.n_answers} answers {one.choice!r}, {one.n_wrong} are wrong" for one in answers]
    advice = ""
    if calibration.max_missed == 1:
        found += [
            f"of {one.n_rows} questions of {one.choice!r}, {one.n_missed} get another answer" for one in questions
        ]
        advice = ". max_missed limits the share of each choice's questions that get another answer"
    if found:
        logger.warning(
            "the target %g is proved for all answers together, not for each choice: %s%s",
            *(calibration.target_risk, "; ".join(found[:NAMED]) + (" ..." if len(found) > NAMED else ""), advice),
        )


def warn_of_two_labels(rows: Iterable[tuple[str, Hashable, str]]) -> None:
    """Log a warning if a question comes twice, with different labels.

    Args:
        rows: the place, the question and the label of each row.
    """
    firsts: dict[Hashable, tuple[str, str]] = {}
    found: dict[Hashable, tuple[str, str, str, str]] = {}
    for where, question, label in rows:
        first, usual = firsts.setdefault(question, (where, label))
        if label != usual:
            found.setdefault(question, (first, usual, where, label))
    if found:
        logger.warning(
            "%s has the label %r, and %s, with the same question, has %r: correct one of them, or remove both "
            "(questions with several labels: %d)",
            *next(iter(found.values())),
            len(found),
        )
