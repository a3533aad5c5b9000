"""An adapter as an engine serves it.

A request holds the handle it started with, so that nothing that happens to the registry can change the weights that
answer it.
"""

from dataclasses import dataclass, field

from blora.config import AdapterConfig
from blora.decision.abstention import Policy
from blora.decision.calibration import Calibration
from blora.posterior.bank import SampleBank
from blora.posterior.posterior import Posterior
from blora.server.engines.digests import calibration_digest

__all__ = ["AdapterHandle"]


@dataclass(frozen=True, eq=False, slots=True)
class AdapterHandle:
    """One adapter, ready to answer.

    Attributes:
        name: what clients call it.
        digest: of its contents, "sha256:..."; its identity.
        config: how it was trained and how it wants to be asked.
        policy: the owner's thresholds, if there are any; a calibration's come before them.
        bank: the draws that answer requests without a seed, made once.
        posterior: where fresh draws come from.
        created: Unix time of loading, in seconds.
        calibration: what was proved about it as it is served, if anything was.
        not_calibrated: whether there is a calibration that does not hold for it as it is served.
        calibration_digest: of the calibration and the policy, "sha256:...", which `digest` does not cover.
    """

    name: str
    digest: str
    config: AdapterConfig
    policy: Policy | None
    bank: SampleBank
    posterior: Posterior
    created: int
    calibration: Calibration | None = None
    not_calibrated: bool = False
    calibration_digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "calibration_digest", calibration_digest(self.calibration, self.policy))
