"""Figures of a decision server's answers to one question."""

from statistics import fmean

from torch import Tensor

from benchmarks.peers.figures import TARGETS, answered_at, ece_floor
from blora.decision.metrics import metrics

__all__ = ["quality"]

SURE = (0.8, 0.9)


def quality(probs: Tensor, right: Tensor, proof: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the figures of a question's answers.

    Args:
        probs: probabilities (N, C) of the test rows.
        right: their labels (N,).
        proof: probabilities (P, C) and labels (P,) of the rows that prove thresholds.
    """
    confidence, top = probs.max(-1)
    wrong = top != right
    found = metrics(probs, right).to_dict() | {"ece_floor": ece_floor(probs)}
    found |= {f"wrong_above_{sure}": (wrong & (confidence >= sure)).double().mean().item() for sure in SURE}
    by_rows = proof[0][None], proof[1]
    return found | {
        f"answered_at_{name}": fmean(answered_at(confidence, wrong, target, by_rows))
        for name, target in TARGETS.items()
    }
