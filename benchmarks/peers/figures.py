"""The figures of a method on a set: metrics, the share answered at a proved risk, and the detection of foreign rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from blora.decision.curves import auroc
from blora.decision.metrics import ece, metrics
from blora.decision.resolution import resolution_of
from blora.decision.selective import Evidence, Stage, certify
from blora.decision.temperature import Recalibration, temper
from blora.posterior.noise import generator_of
from blora.scores import mutual_information, predictive_mean

__all__ = ["DELTA", "DTYPE", "N_DIVISIONS", "Figures", "Scored", "answered_at", "averaged", "ece_floor", "figures"]

DELTA = 0.05
TARGETS = {"5": 0.05, "10": 0.10}
N_DIVISIONS = 20
# Sets of labels from which the floor of an ECE is computed.
N_SIMULATED = 200
# Precision of the base model, which sets how finely thresholds are spaced.
DTYPE = "float32"

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a method says of the test and the foreign rows, S draws each; S is 1 for a method without draws.

    Attributes:
        method: name of the method.
        test: log-probabilities (S, N, C), -inf for choices that a row does not have.
        foreign: the same (S, F, C) of the foreign rows, None if there are none.
        recalibration: temperature and lapse rate from the validation rows.
        seconds: time to train, in seconds, with the reading of training and validation rows.
        seed: seed of the draws, None without draws.
        proof: the same (S, P, C) of the rows that prove thresholds, None if the test rows do.
        distances: distances from the training rows of the test and of the foreign rows, None if not measured.
    """

    method: str
    test: Tensor
    foreign: Tensor | None
    recalibration: Recalibration
    seconds: float
    seed: int | None = None
    proof: Tensor | None = None
    distances: tuple[Tensor, Tensor] | None = None

    def probabilities(self, *, recalibrated: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the probabilities of test, foreign and proof rows under every draw, as trained or recalibrated."""
        temperature, _, lapse = self.recalibration if recalibrated else Recalibration()
        foreign, proof = (
            temper(part, temperature, lapse) if part is not None else None for part in (self.foreign, self.proof)
        )
        return temper(self.test, temperature, lapse), foreign, proof


def figures(
    probs: Tensor,
    labels: Tensor,
    foreign: Tensor | None,
    clear: Tensor | None,
    proof: tuple[Tensor, Tensor] | None = None,
    distances: tuple[Tensor, Tensor] | None = None,
) -> dict[str, float | None]:
    """Return every figure of a method by name, None for those that are not defined; `proof_` are those of proof rows.

    Args:
        probs: probabilities (S, N, C) of the test rows.
        labels: (N,).
        foreign: probabilities (S, F, C) of the foreign rows, None if there are none.
        clear: (N,) mask of the test rows with one right answer, None if unknown.
        proof: probabilities (S, P, C) and labels (P,) of the rows that prove thresholds, None if the test rows do.
        distances: distances of the test rows (N,) and of the foreign rows (F,), None if not measured.
    """
    mean = predictive_mean(probs)
    confidence, top = mean.max(-1)
    found: dict[str, float | None] = {**metrics(mean, labels).to_dict()}
    if proof is not None:
        unseen = predictive_mean(proof[0])
        of_proof = metrics(unseen, proof[1]).to_dict() | {"ece_floor": ece_floor(unseen)}
        found |= {f"proof_{name}": value for name, value in of_proof.items()}
    found["accuracy_clear"] = (top == labels)[clear].double().mean().item() if clear is not None else None
    for name, target in TARGETS.items():
        shares = answered_at(confidence, top != labels, target, proof)
        found[f"answered_at_{name}"] = fmean(shares)
        found[f"answered_at_{name}_std"] = stdev(shares)
    found["foreign_confidence"] = found["foreign_mutual_information"] = found["foreign_familiarity"] = None
    if distances is not None:
        found["foreign_familiarity"] = _told_apart(*distances)
    if foreign is not None:
        found["foreign_confidence"] = _told_apart(1 - confidence, 1 - predictive_mean(foreign).max(-1).values)
        if len(probs) > 1:
            found["foreign_mutual_information"] = _told_apart(mutual_information(probs), mutual_information(foreign))
    return found


def answered_at(
    confidence: Tensor, wrong: Tensor, target_risk: float, proof: tuple[Tensor, Tensor] | None = None
) -> list[float]:
    """Return the share of questions answered at a proved selective risk, for each of `N_DIVISIONS` divisions.

    With rows for the proof, a division is one of these rows: a quarter, chosen by the seed, orders the thresholds, the
    other three quarters prove one at level `DELTA`, as `certify` does for any adapter. What counts is the share of the
    test rows that the threshold answers; it is 0 if nothing is proved. Without them, seeds 0, 1, ... divide the test
    rows at random into two halves; the first takes the place of the rows for the proof, and the second is answered.
    Every method is held to the same divisions and the same proof.

    Args:
        confidence: (N,) probability of the most probable choice.
        wrong: (N,) whether that choice is wrong.
        target_risk: largest allowed P(wrong | answered).
        proof: probabilities (S, P, C) and labels (P,) of rows for the proof.
    """
    shares = []
    for seed in range(N_DIVISIONS):
        if proof is not None:
            known, top = predictive_mean(proof[0]).max(-1)
            stage, held = Stage({"confidence": known}, top != proof[1]), torch.arange(len(wrong))
        else:
            order = torch.randperm(len(wrong), generator=generator_of(seed))
            first, held = order[: len(order) // 2], order[len(order) // 2 :]
            stage = Stage({"confidence": confidence[first]}, wrong[first])
        evidence = Evidence.gather([stage], seed=seed, resolution=resolution_of(DTYPE))
        level = certify(evidence, target_risk=target_risk, delta=DELTA)
        shares.append(level.answers(confidence[held]).double().mean().item())
    return shares


def ece_floor(probs: Tensor) -> float:
    """Return the mean ECE of these probabilities (N, C) if they were exactly right, by simulated labels."""
    drawn = torch.multinomial(probs.clamp_min(1e-12), N_SIMULATED, replacement=True, generator=generator_of(0))
    return fmean(ece(probs, of_all) for of_all in drawn.T)


def averaged(found: Sequence[Figures]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Return the mean of every figure over seeds, and its standard deviation.

    >>> averaged([{"nll": 1.0, "accuracy_clear": None}, {"nll": 3.0, "accuracy_clear": None}])
    ({'nll': 2.0, 'accuracy_clear': None}, {'nll': 1.4142135623730951, 'accuracy_clear': None})
    """
    mean: dict[str, float | None] = {}
    spread: dict[str, float | None] = {}
    for name in found[0]:
        values = [value for one in found if (value := one[name]) is not None]
        mean[name] = fmean(values) if values else None
        spread[name] = stdev(values) if values else None
    return mean, spread


def _told_apart(uncertainty: Tensor, foreign: Tensor) -> float | None:
    """Return the AUROC of an uncertainty for telling foreign rows from test rows."""
    positive = torch.arange(len(uncertainty) + len(foreign)) >= len(uncertainty)
    return auroc(torch.cat([uncertainty, foreign]), positive)
