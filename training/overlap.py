"""Which questions an adapter was made with, so that nothing is proved with rows on which it is better than elsewhere.

Its training record keeps 12 hex digits of a sha256 for every such question, sorted, so that they tell neither the text
nor the order of the rows. Two sets of a thousand questions share one by chance in fewer than one case in 10^8.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from blora.errors import AdapterError, ConfigError, DataError
from blora.training.data import Example, ExampleSet

__all__ = ["SEEN", "check_disjoint", "check_distinct", "check_unseen", "fingerprints"]

# In the training record: fingerprints by use, as in {"train": "...", "validation": "..."}.
SEEN = "seen"
DIGITS = 12
REPORTED = 5  # rows named in one message

_FINGERPRINTS = re.compile(f"([0-9a-f]{{{DIGITS}}})*")


def fingerprints(examples: ExampleSet) -> str:
    """Of all questions, sorted and without a separator: 12 hex digits each."""
    return "".join(sorted({_fingerprint(example) for example in examples.examples}))


def check_unseen(record: Mapping[str, Any], examples: ExampleSet) -> None:
    """Refuses questions that the adapter was fitted to or chosen by.

    Args:
        record: the adapter's training record. One without fingerprints is compared by the digests of its data alone.
        examples: what is to be unseen.

    Raises:
        ConfigError: if the examples are data that the adapter was made with, as a whole.
        DataError: if some of them are, naming the first ones.
        AdapterError: if the record's fingerprints are none.
    """
    for part, data in record.items():
        if isinstance(data, dict) and data.get("digest") == examples.digest:
            raise ConfigError(
                f"got {examples.source}, which is the adapter's {part} data, expected rows that played no part in "
                "making it; calibrate on rows the adapter was not trained on"
            )
    used_for = _read(record.get(SEEN, {}))
    seen = [(e.where, use) for e in examples.examples if (use := used_for.get(_fingerprint(e))) is not None]
    if seen:
        named = ", ".join(f"{where} ({use})" for where, use in seen[:REPORTED])
        more = f" and {len(seen) - REPORTED} more" if len(seen) > REPORTED else ""
        raise DataError(
            f"got {len(seen)} of {len(examples.examples)} questions in {examples.source} that the adapter was made "
            f"with, expected none: {named}{more}; remove them, or calibrate on other rows"
        )


def check_disjoint(train: ExampleSet, validation: ExampleSet) -> None:
    """Refuse validation rows whose question is trained on, whatever its label: they would judge nothing.

    Raises:
        DataError: naming both places of the first ones.
    """
    trained = {example.identity: example.where for example in train.examples}
    shared = [f"{e.where} and {trained[e.identity]}" for e in validation.examples if e.identity in trained]
    if shared:
        more = f"; and {len(shared) - REPORTED} more" if len(shared) > REPORTED else ""
        raise DataError(
            f"got {len(shared)} of {len(validation.examples)} validation questions that are also trained on, expected "
            f"none: {'; '.join(shared[:REPORTED])}{more}. Remove them from one of the two, or give no --validation: "
            "rows of --data are then set aside"
        )


def check_distinct(examples: ExampleSet) -> None:
    """Refuses a question that comes twice, whatever its label: its rows would be counted as independent.

    Raises:
        DataError: naming both places of the first ones.
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
            f"got the same question twice in {examples.source}, expected independent rows: "
            f"{'; '.join(twice[:REPORTED])}{more}. Remove one of each"
        )


def _read(seen: object) -> dict[str, str]:
    """The use of each fingerprint."""
    if not isinstance(seen, dict) or not all(isinstance(v, str) and _FINGERPRINTS.fullmatch(v) for v in seen.values()):
        raise AdapterError(
            f"got a training record whose {SEEN!r} is no list of fingerprints, expected {DIGITS} hex digits a row; "
            "restore bayesian_config.json or train again"
        )
    return {text[i : i + DIGITS]: use for use, text in seen.items() for i in range(0, len(text), DIGITS)}


def _fingerprint(example: Example) -> str:
    return hashlib.sha256(example.identity.encode()).hexdigest()[:DIGITS]
