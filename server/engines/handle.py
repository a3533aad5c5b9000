"""Immutable handles of the adapters that an engine serves.

A request keeps the handle that it started with, so that changes of the registry cannot change the weights that answer
it.
"""

from dataclasses import dataclass, field

from blora.config import AdapterConfig
from blora.decision.abstention import Policy
from blora.decision.calibration import Calibration
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.posterior import Posterior
from blora.server.engines.digests import calibration_digest

__all__ = ["AdapterHandle"]


@dataclass(frozen=True, eq=False, slots=True)
class AdapterHandle:
    """One loaded adapter.

    Attributes:
        name: the name under which it is served.
        digest: digest of its contents, "sha256:...", which identifies it.
        config: its settings of training, prompt and sampling.
        policy: its own thresholds, if there are any; a calibration's thresholds take precedence.
        bank: the posterior draws for requests without a seed, made once.
        posterior: the distribution of fresh draws.
        created: Unix time of loading, in seconds.
        calibration: the calibration that holds for the adapter as served, if there is one.
        not_calibrated: whether the adapter has a calibration that does not hold for it as served.
        calibration_digest: digest of the calibration and the policy, "sha256:...", which `digest` does not cover.
    """

    name: str
    digest: str
    config: AdapterConfig
    policy: Policy | None
    bank: SampleBank
    posterior: Posterior | HeadPosterior
    created: int
    calibration: Calibration | None = None
    not_calibrated: bool = False
    calibration_digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "calibration_digest", calibration_digest(self.calibration, self.policy))
