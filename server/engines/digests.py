"""The digest of an adapter's calibration and policy, which the adapter's own digest does not cover."""

import dataclasses

from pydantic import TypeAdapter

from blora.decision.abstention import Policy
from blora.decision.calibration import Calibration
from blora.decision.gate import Gate
from blora.disk.digests import canonical_digest

__all__ = ["calibration_digest"]

_CALIBRATION = TypeAdapter(Calibration)


def calibration_digest(calibration: Calibration | None, policy: Policy | None, gate: Gate | None = None) -> str:
    """Return the SHA-256 over the calibration and the thresholds in force, "sha256:...".

    The hash covers canonical JSON without the fields at their defaults, so that the same contents have the same digest
    in every replica and in later versions with more optional fields. An adapter without a calibration has a digest
    too, so that adding a calibration changes the digest.

    Args:
        calibration: the calibration that holds for the adapter as served, if there is one.
        policy: the adapter's own thresholds, or the fallback thresholds for a calibration that does not hold.
        gate: the gate of the fallback thresholds, if they have one.
    """
    in_force = {
        "calibration": _CALIBRATION.dump_python(calibration, mode="json", exclude_defaults=True)
        if calibration is not None
        else None,
        "policy": policy.thresholds() if policy is not None else None,
    } | ({"gate": dataclasses.asdict(gate)} if gate is not None else {})
    return canonical_digest(in_force)
