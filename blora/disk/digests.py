"""Digests of values by their canonical JSON."""

import hashlib
import json

__all__ = ["canonical_digest"]


def canonical_digest(value: object) -> str:
    """Return the SHA-256 of a JSON value, "sha256:...", independent of layout and order of names.

    >>> canonical_digest({"b": 1, "a": 2}) == canonical_digest({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
