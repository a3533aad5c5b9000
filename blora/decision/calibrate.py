"""Calibration of an adapter from labelled rows: proved levels, conformal quantiles and descriptive curves."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from blora.decision.abstention import Policy
from blora.decision.asks import Ask, total_delta
from blora.decision.by_choice import by_choice
from blora.decision.calibration import (
    CURVE_POINTS,
    Binding,
    Calibration,
    CalibrationRows,
    ConformalQuantile,
    FormName,
    Goal,
)
from blora.decision.conformal import conformal_quantile, nonconformity, proof_rows_needed
from blora.decision.curves import reliability, risk_coverage
from blora.decision.gate import Gate
from blora.decision.guesses import modest
from blora.decision.resolution import resolution_of
from blora.decision.selective import Evidence, Stage, certify, split_rows
from blora.decision.stopping import draws_used, looks, reach
from blora.decision.temperature import temper
from blora.errors import ConfigError, DataError, NumericalError, ShapeError
from blora.scores import SCORES, ScoreName, predictive_mean, scores_of

__all__ = ["STANDARD_COVERAGES", "STANDARD_TARGETS", "calibrate"]

STANDARD_TARGETS = (0.01, 0.02, 0.05, 0.1, 0.2)
STANDARD_COVERAGES = (0.8, 0.9, 0.95)


def calibrate(
    log_probs: Tensor,
    labels: Tensor,
    *,
    binding: Binding,
    goal: Goal,
    source: str,
    digest: str,
    split: str,
    forms: Sequence[FormName],
    earlier: Callable[[], Sequence[Ask]] = tuple,
    distances: Tensor | None = None,
    guesses: Tensor | None = None,
    choices: Sequence[str] = (),
) -> Calibration:
    """Return the calibration that labelled rows prove for an adapter.

    Args:
        log_probs: (S, N, C) under every draw of the adapter's bank, -inf for choices that a row does not have.
        labels: (N,) indices of the right choices.
        binding: identity and settings of the scored adapter, whose temperature and lapse rate are applied.
        goal: the target to prove. All of its fields, the seed included, must be fixed before any row is seen.
        source: origin of the rows.
        digest: digest of the rows as read.
        split: name of the rows' split.
        forms: forms of requests for such questions.
        earlier: returns the earlier asks of overlapping rows, whose deltas add to this ask's delta. Called once, before
            a label is compared with an answer: what fails without that is no ask, so a caller can record the ask here.
        distances: (N,) distances from the training rows, and so a gate; None for an adapter without a familiarity.
        guesses: (N,) share of guesses in each answer; None for an adapter without a familiarity.
        choices: the C choices that every row has; none if they have different ones.

    Raises:
        ShapeError: if the shapes do not fit, or the number of draws differs from the binding's n_samples.
        DataError: if a row has fewer than two choices, or its label is not one of its choices.
        NumericalError: if a probability is not finite.
        ConfigError: if there are too few rows or draws, or the rows do not prove the gate or the target.
    """
    n_choices = _check_rows(log_probs, labels, binding)
    if distances is None:
        goal = replace(goal, max_false_alarms=1.0)
    goal.check_rows(len(labels))
    goal.check_draws(binding.n_samples)
    draws = temper(log_probs, binding.temperature, binding.lapse)
    if not bool(draws.isfinite().all()):
        raise NumericalError("got probabilities that are not finite, expected finite ones: score in float32")
    tuning, proof = split_rows(len(labels), goal.seed)
    gate, passing = None, None
    if distances is not None and goal.max_false_alarms < 1:
        gate = Gate.of(distances[proof], goal.max_false_alarms, goal.delta)
        nearer = distances.double() < gate.distance
        passing = tuning[nearer[tuning]], proof[nearer[proof]]
        if not all(map(len, passing)):
            raise ConfigError("got no row that passes the gate of the familiarity, expected some: bring more rows")
    right = None
    if goal.max_missed < 1:
        goal.check_choices(choices, labels[passing[1] if passing is not None else proof])
        right = one_hot(labels.long(), len(choices))
    probs = draws if guesses is None else modest(draws, guesses, ~log_probs.isneginf().all(0))
    asks = (*earlier(), goal.ask_in(binding.dtype))
    stages = _stages(probs, draws, labels, binding.stop_error, goal.score)
    resolution = resolution_of(binding.dtype)
    evidence = Evidence.gather(stages, seed=goal.seed, resolution=resolution, passing=passing, right=right)
    targets = sorted({*STANDARD_TARGETS, goal.target_risk})
    levels = tuple(
        certify(evidence, target_risk=target, delta=goal.delta, max_missed=goal.max_missed) for target in targets
    )
    default = levels[targets.index(goal.target_risk)]
    if default.threshold is None:
        raise ConfigError(_not_proved(len(labels), goal, total_delta(asks)))
    mean, scores = _answers(probs, draws, default.policy(), binding.stop_error)
    top, certainty = mean.argmax(-1), SCORES[default.score].certainty
    answered = default.answers(scores[default.score])[proof]
    if gate is not None and distances is not None:
        answered = answered & (distances[proof].double() < gate.distance)
    return Calibration(
        binding=binding,
        rows=CalibrationRows(
            source=source,
            digest=digest,
            split=split,
            forms=tuple(sorted(set(forms))),
            fewest_choices=int(n_choices.min()),
            most_choices=int(n_choices.max()),
            n_rows=len(labels),
            n_tuning=evidence.n_tuning,
            n_proof=evidence.n_proof,
            seed=goal.seed,
        ),
        delta=total_delta(asks),
        asks=asks,
        target_risk=goal.target_risk,
        coverage=goal.coverage,
        levels=levels,
        quantiles=_quantiles(_nonconformity(probs[:, proof], labels[proof], binding.stop_error), goal.coverage),
        reliability=tuple(reliability(mean, labels)),
        curve=tuple(
            (kept, risk) for kept, risk in risk_coverage(certainty(scores[default.score]), top == labels, CURVE_POINTS)
        ),
        gate=gate,
        choices=by_choice(choices, top[proof], labels[proof], answered),
    )


def _check_rows(log_probs: Tensor, labels: Tensor, binding: Binding) -> Tensor:
    """Return each row's number of choices, (N,), after checks of draws, choices and labels."""
    if log_probs.ndim != 3 or labels.shape != log_probs.shape[1:2]:
        raise ShapeError(
            f"got log-probabilities {tuple(log_probs.shape)} and labels {tuple(labels.shape)}, "
            "expected (S, N, C) and (N,)"
        )
    if len(log_probs) != binding.n_samples:
        raise ShapeError(
            f"got log-probabilities of {len(log_probs)} draws, expected {binding.n_samples}, the binding's n_samples: "
            "score under every draw of the bank"
        )
    C = log_probs.shape[-1]
    if (row := _first((labels < 0) | (labels >= C))) is not None:
        raise DataError(
            f"got label {int(labels[row])} in row {row} (from 0), expected 0 to {C - 1}: correct or remove the row"
        )
    present = ~log_probs.isneginf().all(0)  # (N, C)
    n_choices = present.sum(-1)
    if (row := _first(n_choices < 2)) is not None:
        raise DataError(f"got {int(n_choices[row])} choices in row {row} (from 0), expected at least 2: remove the row")
    if (row := _first(~present.gather(1, labels.long()[:, None])[:, 0])) is not None:
        raise DataError(
            f"got label {int(labels[row])} in row {row} (from 0), a choice of log-probability -inf that the row does "
            "not have, expected one of its own: correct or remove the row"
        )
    return n_choices


def _stages(
    probs: Tensor, draws: Tensor, labels: Tensor, stop_error: float | None, score: ScoreName | None
) -> list[Stage]:
    """Return the rows' scores and errors at every look, for the given score or for all.

    Args:
        probs: (S, N, C) probabilities of the answers.
        draws: the same before guesses.
        labels: (N,).
        stop_error: error of early stopping, None for none.
        score: the score, None for all.
    """

    def kept(scores: dict[ScoreName, Tensor]) -> dict[ScoreName, Tensor]:
        return {name: values for name, values in scores.items() if score in (None, name)}

    stages = []
    for look in _looks(len(probs), stop_error):
        seen = probs[:look]
        unsettled = reach(seen, len(probs), stop_error) if stop_error is not None and look < len(probs) else {}
        wrong = predictive_mean(seen).argmax(-1) != labels
        stages.append(Stage(kept(scores_of(seen, draws[:look])), wrong, kept(unsettled)))
    return stages


def _answers(
    probs: Tensor, draws: Tensor, policy: Policy, stop_error: float | None
) -> tuple[Tensor, dict[ScoreName, Tensor]]:
    """Return the posterior predictive (N, C) and the scores (N,), each row under the draws taken until it stops."""
    mean, scores = predictive_mean(probs), scores_of(probs, draws)
    if stop_error is None:
        return mean, scores
    used = draws_used(probs, policy, stop_error)
    for look in looks(len(probs)):
        rows = used == look
        mean[rows] = predictive_mean(probs[:look, rows])
        for name, values in scores_of(probs[:look, rows], draws[:look, rows]).items():
            scores[name][rows] = values
    return mean, scores


def _nonconformity(probs: Tensor, labels: Tensor, stop_error: float | None) -> Tensor:
    """Return each row's largest nonconformity over all looks, (N,), so that sets are valid wherever draws stop."""
    seen = [nonconformity(predictive_mean(probs[:look]), labels) for look in _looks(len(probs), stop_error)]
    return torch.stack(seen).amax(0)


def _looks(n_samples: int, stop_error: float | None) -> list[int]:
    return [n_samples] if stop_error is None else looks(n_samples)


def _first(flags: Tensor) -> int | None:
    """Return the index of the first flagged row of (N,), or None."""
    found = flags.nonzero()
    return int(found[0, 0]) if len(found) else None


def _quantiles(scores: Tensor, default: float) -> tuple[ConformalQuantile, ...]:
    """Return the conformal quantiles of the standard coverages and the default coverage, None with too few rows."""
    return tuple(
        ConformalQuantile(
            coverage=coverage,
            quantile=min(1.0, max(0.0, conformal_quantile(scores, coverage)))
            if len(scores) >= proof_rows_needed(coverage)
            else None,
        )
        for coverage in sorted({*STANDARD_COVERAGES, default})
    )


def _not_proved(n_rows: int, goal: Goal, spent: float) -> str:
    # The message names no target that these rows would have proved: the sum of deltas does not cover a target that was
    # chosen after looking at the rows.
    limit = f" with max_missed {goal.max_missed}" if goal.max_missed < 1 else ""
    return (
        f"got target_risk {goal.target_risk}{limit}, which these {n_rows} rows do not prove at delta {goal.delta}, "
        f"expected one that they prove. The rows are used up at delta {spent:g}: another calibration attempt on them "
        "adds its delta to that, and rows that no attempt has used start anew. Calibrate on new rows, more of them for "
        "the same target, or train a better adapter"
    )
