"""Fingerprints, by which texts are recognised that are not kept: 12 hex digits each, written without a separator."""

import hashlib
import re
from typing import TypeGuard

__all__ = ["DIGITS", "are_fingerprints", "fingerprint", "joined", "parts"]

DIGITS = 12

_FINGERPRINTS = re.compile(f"([0-9a-f]{{{DIGITS}}})*")


def fingerprint(text: str) -> str:
    """Return the start of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def joined(*known: str) -> str:
    """Return all fingerprints in several texts as one text, sorted, each once.

    >>> joined("0123456789ab", "", "00000000000b0123456789ab")
    '00000000000b0123456789ab'
    """
    return "".join(sorted({one for text in known for one in parts(text)}))


def parts(fingerprints: str) -> list[str]:
    """Return the fingerprints in a text.

    >>> parts("00000000000b0123456789ab")
    ['00000000000b', '0123456789ab']
    """
    return [fingerprints[start : start + DIGITS] for start in range(0, len(fingerprints), DIGITS)]


def are_fingerprints(value: object) -> TypeGuard[str]:
    """Return whether a value is a text of fingerprints; an empty one has none."""
    return isinstance(value, str) and _FINGERPRINTS.fullmatch(value) is not None
