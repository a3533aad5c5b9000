"""Checks that questions are distinct, and that an adapter was not made with them.

A calibration on rows that the adapter was made with would prove too low a risk. The adapter's training record
therefore keeps a fingerprint of every text that the adapter was made with, see `blora.questions.fingerprints`; they
reveal neither the text nor the order of the rows. The choices do not count, nor whether the text was the input of a
request, a prompt or a chat of one turn. Two disjoint sets of a thousand texts share a fingerprint with probability
below 10^-8.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blora.adapter import is_adapter, read_config
from blora.errors import AdapterError, ConfigError, DataError
from blora.questions.fingerprints import DIGITS, are_fingerprints, fingerprint, joined, parts
from blora.training.rows.examples import Example, ExampleSet

__all__ = [
    "SEEN",
    "check_disjoint",
    "check_distinct",
    "check_unseen",
    "fingerprints",
    "seen_among",
    "seen_by",
    "trained_on",
]

# Key of the training record for the fingerprints by use, as in {"train": "...", "validation": "..."}.
SEEN = "seen"
# The uses of rows that determined an adapter's weights. The other uses chose its settings: those of the adapter that it
# began with are "init validation".
TRAINED = ("train", "init")
REPORTED = 5  # rows named in one message


def fingerprints(examples: ExampleSet) -> str:
    """Return the fingerprints of all texts as one text, see `blora.questions.fingerprints`."""
    return joined(*(one for example in examples.examples for one in _fingerprints_of(example)))


def seen_by(folder: Path | None) -> dict[str, str]:
    """Return what an adapter has seen by beginning with the one in a folder; nothing for a plain LoRA or None.

    Raises:
        AdapterError: if the adapter's config is unusable.
    """
    if folder is None or not is_adapter(folder):
        return {}
    seen = read_config(folder).training.get(SEEN, {})
    _read(seen)
    trained = trained_on(seen)
    others = (text for use, text in seen.items() if use not in trained)
    return {"init": joined(*trained.values()), "init validation": joined(*others)}


def trained_on(seen: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an adapter's fingerprints by use that is of the rows that determined its weights."""
    return {use: text for use, text in seen.items() if use in TRAINED}


def seen_among(examples: ExampleSet, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the place and the use of each question that the adapter with this training record was made with.

    Raises:
        AdapterError: if the record's fingerprints are malformed.
    """
    used_for = _read(record.get(SEEN, {}))
    known = ((e.where, _fingerprints_of(e)) for e in examples.examples)
    found = ((where, [used_for[one] for one in ones if one in used_for]) for where, ones in known)
    return [(where, uses[0]) for where, uses in found if uses]


def check_unseen(record: Mapping[str, Any], examples: ExampleSet) -> None:
    """Refuse questions whose text the adapter was trained, tuned or validated on, with these choices or others.

    Args:
        record: the adapter's training record. If it has no fingerprints, only the digests of its data are compared.
        examples: the questions to check.

    Raises:
        ConfigError: if the adapter was made with this very data set.
        DataError: if the adapter was made with some of the questions; the message names the first ones.
        AdapterError: if the record's fingerprints are malformed.
    """
    for part, data in record.items():
        if isinstance(data, dict) and data.get("digest") == examples.digest:
            raise ConfigError(
                f"got {examples.source}, which is the adapter's {part} data, expected rows that played no part in "
                "making it; use other rows"
            )
    if seen := seen_among(examples, record):
        named = ", ".join(f"{where} ({use})" for where, use in seen[:REPORTED])
        more = f" and {len(seen) - REPORTED} more" if len(seen) > REPORTED else ""
        raise DataError(
            f"got {len(seen)} of {len(examples.examples)} questions in {examples.source} that the adapter was made "
            f"with, expected none: {named}{more}; remove them, or use other rows"
        )


def check_disjoint(train: ExampleSet, validation: ExampleSet) -> None:
    """Refuse validation rows whose question, or a text that a request is about, is also trained on, with any label.

    A prompt may be trained on as a prompt with other choices: it is a general one, such as "Which of these is true?".

    Raises:
        DataError: if there are such rows; the message names both places of the first ones.
    """
    questions = {example.identity: example.where for example in train.examples}
    texts = {example.text: example.where for example in train.examples}
    of_requests = {example.text: example.where for example in train.examples if example.about is not None}

    def trained(e: Example) -> str | None:
        return questions.get(e.identity) or (texts if e.about is not None else of_requests).get(e.text)

    found = ((e.where, trained(e)) for e in validation.examples)
    shared = [f"{where} and {place}" for where, place in found if place is not None]
    if shared:
        more = f"; and {len(shared) - REPORTED} more" if len(shared) > REPORTED else ""
        raise DataError(
            f"got {len(shared)} of {len(validation.examples)} validation questions that are also trained on, expected "
            f"none: {'; '.join(shared[:REPORTED])}{more}. Remove them from one of the two, or give no --validation: "
            "rows of --data are then set aside"
        )


def check_distinct(examples: ExampleSet) -> None:
    """Refuse questions that come twice, with the same label or another: in the proof each text counts once.

    Raises:
        DataError: if there are such questions; the message names both places of the first ones.
    """
    places: dict[str, str] = {}
    twice = []
    for example in examples.examples:
        first = places.setdefault(example.identity, example.where)
        if first != example.where:
            twice.append(f"{first} and {example.where}")
    if twice:
        more = f"; and {len(twice) - REPORTED} more" if len(twice) > REPORTED else ""
        raise DataError(
            f"got the same question twice in {examples.source}, expected each once, because a "
            f"text counts once in a proof: {'; '.join(twice[:REPORTED])}{more}. Remove one of each"
        )


def _read(seen: object) -> dict[str, str]:
    """Return the use (such as "train") of each fingerprint.

    Raises:
        AdapterError: if the fingerprints are malformed.
    """
    if not isinstance(seen, dict) or not all(map(are_fingerprints, seen.values())):
        raise AdapterError(
            f"got a training record whose {SEEN!r} is not a list of fingerprints, expected {DIGITS} hex digits a row; "
            "restore bayesian_config.json or train again"
        )
    return {one: use for use, text in seen.items() for one in parts(text)}


def _fingerprints_of(example: Example) -> list[str]:
    """Return the fingerprints of the text that a question is about, and of its wording, which for most is the text."""
    return [fingerprint(text) for text in dict.fromkeys((example.text, example.wording))]
