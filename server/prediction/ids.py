"""Identifiers of predictions, which sort by time."""

import secrets
import time

__all__ = ["prediction_id"]

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def prediction_id(now: float | None = None) -> str:
    """Return `pred_` and a ULID: 48 bits of Unix milliseconds and 80 random bits, in Crockford's base 32.

    Args:
        now: Unix time in seconds; by default the current time.

    >>> prediction_id(1_700_000_000.0)[:15]
    'pred_01HF7YAT00'
    """
    milliseconds = int((time.time() if now is None else now) * 1000)
    number = milliseconds << 80 | secrets.randbits(80)
    return "pred_" + "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))
