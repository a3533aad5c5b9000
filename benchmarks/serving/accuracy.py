"""Whether cheap answers are the same: decisions against those of 64 draws, the NLL against that of more posterior."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.serving.contenders import MOST_DRAWS, Engine
from blora.decision.abstention import Policy, decide
from blora.decision.uncertainty import summarize
from blora.inference.packing import PackedRow

__all__ = ["compare_answers", "decisions"]


def compare_answers(
    engine: Engine, rows: Sequence[PackedRow], labels: Sequence[int], n_samples: int
) -> tuple[dict[str, Any], Tensor]:
    """Return the changes that early stopping and fewer draws make to answers.

    Returns:
        The figures, and how far each question's score under 64 draws lies from the policy's threshold, (N,).
    """
    most = engine.fixed(rows, MOST_DRAWS)
    fixed = engine.fixed(rows, n_samples)
    early = engine.early(rows, n_samples)
    used = torch.tensor([len(draws) for draws in early])
    kinds = {"early": early, "fixed": fixed, "most": most}
    figures = {
        "n_questions": len(rows),
        "n_samples": n_samples,
        "decision_agreement_64": _agreement(engine.policy, early, most),
        "fixed_agreement_64": _agreement(engine.policy, fixed, most),
        "early_agreement_fixed": _agreement(engine.policy, early, fixed),
        "answered": {
            name: sum(answer is not None for answer in decisions(engine.policy, answers)) / len(rows)
            for name, answers in kinds.items()
        },
        "distance_64": {"early": _distances(early, most), "fixed": _distances(fixed, most)},
        "mean_draws": used.float().mean().item(),
        "stopped_at": {str(n): int((used == n).sum()) for n in sorted(set(used.tolist()))},
        "accuracy": {name: _accuracy(answers, labels) for name, answers in kinds.items()},
        "nll": {name: _nll(answers, labels) for name, answers in kinds.items()},
    }
    return figures, torch.tensor([_margin(engine.policy, draws) for draws in most])


def decisions(policy: Policy, answers: Sequence[Tensor]) -> list[int | None]:
    """Return each question's answer, None where the policy abstains."""
    found: list[int | None] = []
    for draws in answers:
        prediction = summarize(draws)
        found.append(None if decide(prediction, policy).abstained else prediction.top)
    return found


def _margin(policy: Policy, draws: Tensor) -> float:
    """From the nearest threshold."""
    values = summarize(draws).scores()
    return min(abs(values[name] - limit) for name, limit in policy.limits().items())


def _agreement(policy: Policy, ours: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    pairs = list(zip(decisions(policy, ours), decisions(policy, reference), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def _distances(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> dict[str, float]:
    """Largest difference of a choice's probability in a question: its mean, 99th percentile and maximum."""
    largest = torch.stack([(a.mean(0) - b.mean(0)).abs().max() for a, b in zip(ours, reference, strict=True)])
    return {
        "mean": largest.mean().item(),
        "p99": largest.quantile(0.99).item(),
        "max": largest.max().item(),
    }


def _accuracy(answers: Sequence[Tensor], labels: Sequence[int]) -> float:
    right = (int(draws.mean(0).argmax()) == label for draws, label in zip(answers, labels, strict=True))
    return sum(right) / len(labels)


def _nll(answers: Sequence[Tensor], labels: Sequence[int]) -> float:
    return -sum(draws.mean(0)[label].log().item() for draws, label in zip(answers, labels, strict=True)) / len(labels)
