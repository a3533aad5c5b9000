"""Immutable handles of the adapters that an engine serves.

A request keeps the handle that it started with, so that changes of the registry cannot change the weights that answer
it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from blora.config import AdapterConfig
from blora.decision.abstention import Policy
from blora.decision.calibration import Calibration
from blora.decision.familiarity import Familiarity, p_value_among
from blora.decision.gate import Gate
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import Features, HeadPosterior
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
        familiarity: distance from the training rows, on the device; None without one.
        not_calibrated: whether the adapter has a calibration that does not hold for it as served.
        gate: the gate whose threshold is the policy's, of a calibration that does not hold for it as served; None for a
            policy without such a gate.
        calibration_digest: digest of the calibration, the policy and its gate, "sha256:...", which `digest` does not
            cover.
        reference: (n,) float64, ascending: distances of the rows of the calibration's gate or else of the policy's, or,
            without a gate, of the validation rows; None without a familiarity.
    """

    name: str
    digest: str
    config: AdapterConfig
    policy: Policy | None
    bank: SampleBank
    posterior: Posterior | HeadPosterior
    created: int
    calibration: Calibration | None = None
    familiarity: Familiarity | None = None
    not_calibrated: bool = False
    gate: Gate | None = None
    calibration_digest: str = field(init=False)
    reference: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "calibration_digest", calibration_digest(self.calibration, self.policy, self.gate))
        reference, gate = None, self.calibration.gate if self.calibration is not None else self.gate
        if self.familiarity is not None:
            own = self.familiarity.reference if gate is None else torch.tensor(gate.reference, dtype=torch.float64)
            reference = own.cpu().double().sort().values
        object.__setattr__(self, "reference", reference)

    @property
    def reading(self) -> str:
        """The identity of what is computed of a question before any draw: handles with the same one share passes."""
        head = self.config.head
        if head is None or self.config.modules:
            return self.digest
        companion = head.companion.depths if head.companion is not None else None  # the same for all adapters
        return f"{self.config.prompt.readout}: states at {head.depths}, {companion}, n-grams: {head.n_grams > 0}"

    @property
    def least_familiarity(self) -> float | None:
        """The least familiarity that an answer can have, 1 / (n + 1) among n reference rows; None without any."""
        return 1 / (len(self.reference) + 1) if self.reference is not None else None

    @property
    def may_abstain(self) -> bool:
        """Return whether there is a calibration or a policy.

        Without either, every question is answered unless its request has a policy.
        """
        return self.calibration is not None or self.policy is not None

    def distances(self, features: Features) -> list[float | None]:
        """Return the distance of each question from the training rows; None without a familiarity."""
        if self.familiarity is None or features.prompt is None:
            return [None] * len(features)
        return [*self.familiarity.distance(features.prompt, features.choices()).tolist()]

    def guesses(self, distance: float) -> float:
        """Return the share of guesses in the answer to a question at a distance from the training rows."""
        return self.familiarity.guesses(torch.tensor([distance])).item() if self.familiarity is not None else 0.0

    def p_value(self, distance: float) -> float:
        """Return a question's familiarity, its conformal p-value among the rows of the reference."""
        assert self.reference is not None  # the distance is the familiarity's
        return p_value_among(torch.tensor([distance]), self.reference).item()
