"""Does the guarantee hold? Two hundred calibrations from real probabilities, each held against what it promised.

`python -m benchmarks.guarantee FILE --json OUT` takes a safetensors file with `log_probs` (S, N, C), under every draw,
`labels` (N,) and `lengths` (N,), as `benchmarks.calibration` keeps them, and with `--run` the result file of the
run whose recalibration is to be applied. Two readings of the same rows:

population: The rows are taken to be all the questions there are, so that the true selective error under any threshold
    is known. Each calibration draws half as many rows from them, independently and with replacement, which is exactly
    what the theorem is about. The calibrations are independent of each other too, so the number of those whose true
    error exceeds the target is binomial, with a probability of at most delta each. This comparison can refute the
    guarantee: the share `exceeds` against `limit`, the exact binomial limit that a guarantee which only just holds
    keeps within in 95 of 100 runs of this benchmark.

halves: The rows are divided into a calibration and a test half, as a user would. The error of a finite test half is
    itself noisy, and the luck that the calibration half had is just what the test half lacks, for together they are all
    rows. So a realised error above the target, `exceeds`, is no breach: under a threshold whose true error is exactly
    the target about half of all test halves show more. `contradicts` counts only those that show more than chance
    explains, by an exact one-sided binomial test at 5 %: some delta + 5 % of them if the halves were independent, which
    they are not. Both say what users will see; neither is a test of the guarantee.

A calibration that refuses the target promises nothing, and counts as one that does not exceed it.

Prediction sets promise their coverage on average over calibrations and questions, which is what dividing the rows at
random measures without bias: the mean coverage of the test halves has to reach the target within its standard error.
"""

import argparse
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.result_files import about, write
from blora.decision.binomial import binomial_cdf
from blora.decision.calibrate import STANDARD_COVERAGES, STANDARD_TARGETS
from blora.decision.conformal import conformal_quantile, nonconformity, prediction_sets
from blora.decision.selective import Evidence, Level, Stage, certify, split_rows
from blora.decision.temperature import Recalibration
from blora.posterior.noise import generator_of
from blora.scores import ScoreName, predictive_mean, scores_of

__all__ = ["binomial_limit", "measure"]

SIGNIFICANCE = 0.05


def binomial_limit(n: int, p: float) -> int:
    """Return the number that Binomial(n, p) does not exceed with a probability of at least 95 %."""
    return next(k for k in range(n + 1) if binomial_cdf(k, n, p) >= 1 - SIGNIFICANCE)


def measure(probs: Tensor, present: Tensor, labels: Tensor, *, delta: float, splits: int, seed: int) -> dict[str, Any]:
    """Every figure, by target and by coverage.

    Args:
        probs: (S, N, C).
        present: (N, C) which choices a row has.
        labels: (N,).
        delta: of the calibrations.
        splits: how many calibrations.
        seed: of all of them.
    """
    mean = predictive_mean(probs)
    rows = _Rows(scores_of(probs), mean.argmax(-1) != labels)
    N = len(labels)
    population: dict[float, list[_Outcome]] = {target: [] for target in STANDARD_TARGETS}
    halves: dict[float, list[_Outcome]] = {target: [] for target in STANDARD_TARGETS}
    sets: dict[float, list[tuple[float, float]]] = {coverage: [] for coverage in STANDARD_COVERAGES}
    for index in range(splits):
        generator = generator_of(seed, index)
        order = torch.randperm(N, generator=generator)
        calibration, test = order[: N // 2], order[N // 2 :]
        drawn = torch.randint(N, (N // 2,), generator=generator)
        for chosen, held, outcomes in ((drawn, torch.arange(N), population), (calibration, test, halves)):
            evidence = rows.part(chosen).evidence(seed=index)
            for target, found in outcomes.items():
                found.append(rows.part(held).under(certify(evidence, target_risk=target, delta=delta)))
        proof = calibration[split_rows(len(calibration), index)[1]]
        scores = nonconformity(mean[proof], labels[proof])
        for coverage, sizes in sets.items():
            members = prediction_sets(mean[test], conformal_quantile(scores, coverage)) & present[test]
            held_label = members.gather(1, labels[test, None]).double().mean()
            sizes.append((float(held_label), float(members.sum(-1).double().mean())))
    return {
        "n_examples": N,
        "n_samples": len(probs),
        "error": float(rows.wrong.double().mean()),
        "delta": delta,
        "splits": splits,
        "seed": seed,
        "limit": binomial_limit(splits, delta) / splits,
        "selective": [
            {
                "target_risk": target,
                "population": _summary(population[target], target),
                "halves": _summary(halves[target], target) | {"contradicts": _contradicts(halves[target], target)},
            }
            for target in STANDARD_TARGETS
        ],
        "conformal": [
            {
                "coverage": coverage,
                "mean_coverage": fmean(held for held, _ in found),
                "standard_error": stdev(held for held, _ in found) / math.sqrt(splits),
                "mean_size": fmean(size for _, size in found),
            }
            for coverage, found in sets.items()
        ],
    }


class _Outcome(NamedTuple):
    """What a level does to rows: of how many, how many are answered, and how many of these wrongly."""

    refused: bool
    rows: int
    answered: int
    wrong: int

    @property
    def error(self) -> float:
        """Of the answers; 0 where there are none."""
        return self.wrong / self.answered if self.answered else 0.0


@dataclass(frozen=True)
class _Rows:
    scores: dict[ScoreName, Tensor]
    wrong: Tensor

    def part(self, index: Tensor) -> "_Rows":
        return _Rows({name: values[index] for name, values in self.scores.items()}, self.wrong[index])

    def evidence(self, *, seed: int) -> Evidence:
        return Evidence.gather([Stage(self.scores, self.wrong)], seed=seed)

    def under(self, level: Level) -> _Outcome:
        answered = level.answers(self.scores[level.score])
        return _Outcome(
            level.threshold is None, len(self.wrong), int(answered.sum()), int((answered & self.wrong).sum())
        )


def _summary(outcomes: Sequence[_Outcome], target: float) -> dict[str, float | int | None]:
    """Return the table; a refused calibration answers nothing, and counts in every share and in neither mean."""
    proved = [outcome for outcome in outcomes if not outcome.refused]
    return {
        "exceeds": sum(outcome.error > target for outcome in outcomes) / len(outcomes),
        "refused": len(outcomes) - len(proved),
        "mean_error": fmean(outcome.error for outcome in proved) if proved else None,
        "mean_coverage": fmean(outcome.answered / outcome.rows for outcome in proved) if proved else None,
    }


def _contradicts(outcomes: Sequence[_Outcome], target: float) -> float:
    """Share of outcomes with so many wrong answers that P(as many or more | error = target) is at most 5 %."""
    surprising = [
        outcome.answered > 0 and 1 - binomial_cdf(outcome.wrong - 1, outcome.answered, target) <= SIGNIFICANCE
        for outcome in outcomes
    ]
    return sum(surprising) / len(outcomes)


def main(argv: Sequence[str]) -> None:
    """Measures, writes, and prints what can refute the guarantee."""
    parser = argparse.ArgumentParser("benchmarks.guarantee", description="hold calibrations against what they promise")
    parser.add_argument("file", type=Path, help="safetensors with log_probs (S, N, C), labels (N,) and lengths (N,)")
    parser.add_argument("--json", type=Path, required=True, help="write the result here")
    parser.add_argument("--run", type=Path, help="result file with the recalibration, none by default")
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    tensors = load_file(arguments.file)
    fitted = json.loads(arguments.run.read_text())["recalibration"] if arguments.run else {}
    recalibration = Recalibration(**fitted)
    result = measure(
        recalibration.of(tensors["log_probs"], tensors["lengths"]),
        tensors["log_probs"][0].isfinite(),
        tensors["labels"].long(),
        delta=arguments.delta,
        splits=arguments.splits,
        seed=arguments.seed,
    )
    made = {
        "recalibration": recalibration._asdict(),
        "source": arguments.file.name,
        "digest": f"sha256:{hashlib.sha256(arguments.file.read_bytes()).hexdigest()}",
        **about(shlex.join(["python", "-m", "benchmarks.guarantee", *argv])),
    }
    write(arguments.json, result | made)
    for row in result["selective"]:
        sys.stdout.write(
            f"target {row['target_risk']}: exceeded in {row['population']['exceeds']:.3f} of the calibrations "
            f"(delta {result['delta']}, binomial 95 % limit {result['limit']:.3f}), refused in "
            f"{row['population']['refused']}\n"
        )
    for row in result["conformal"]:
        sys.stdout.write(
            f"coverage {row['coverage']}: {row['mean_coverage']:.4f} +- {row['standard_error']:.4f}, "
            f"{row['mean_size']:.2f} choices a set\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
