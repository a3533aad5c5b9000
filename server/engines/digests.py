"""The digest of an adapter's calibration and policy, which the adapter's own digest does not cover."""

import hashlib
import json

from pydantic import TypeAdapter

from blora.decision.abstention import Policy
from blora.decision.calibration import Calibration

__all__ = ["calibration_digest"]

_CALIBRATION = TypeAdapter(Calibration)


def calibration_digest(calibration: Calibration | None, policy: Policy | None) -> str:
    """Return the SHA-256 over the calibration and the thresholds in force, "sha256:...".

    The hash covers canonical JSON without the fields at their defaults, so that the same contents have the same digest
    in every replica and in later versions with more optional fields. An adapter without a calibration has a digest
    too, so that adding a calibration changes the digest.

    Args:
        calibration: the calibration that holds for the adapter as served, if there is one.
        policy: the adapter's own thresholds, or the fallback thresholds for a calibration that does not hold.
    """
    in_force = {
        "calibration": _CALIBRATION.dump_python(calibration, mode="json", exclude_defaults=True)
        if calibration is not None
        else None,
        "policy": policy.thresholds() if policy is not None else None,
    }
    canonical = json.dumps(in_force, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
