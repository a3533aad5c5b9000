"""The digest of what decides about an adapter's answers, which the adapter's own digest does not cover."""

import hashlib
import json

from pydantic import TypeAdapter

from blora.decision.abstention import Policy
from blora.decision.calibration import Calibration

__all__ = ["calibration_digest"]

_CALIBRATION = TypeAdapter(Calibration)


def calibration_digest(calibration: Calibration | None, policy: Policy | None) -> str:
    """Return the SHA-256 over the calibration and the thresholds that are in force, "sha256:...".

    It is that of canonical JSON in which fields at their defaults are left out, so that the same contents have the same
    digest in every replica, and in a later version that knows more optional fields. An adapter of which nothing was
    proved has one too, so that a calibration which appears is noticed as one that changes.

    Args:
        calibration: what was proved about the adapter as it is served, if anything was.
        policy: its owner's thresholds, or those that stand in for a calibration that does not hold.
    """
    in_force = {
        "calibration": _CALIBRATION.dump_python(calibration, mode="json", exclude_defaults=True)
        if calibration is not None
        else None,
        "policy": policy.thresholds() if policy is not None else None,
    }
    canonical = json.dumps(in_force, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
