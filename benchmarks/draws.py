"""How few draws do the work of many: independent ones, mirrored pairs, and draws chosen on other questions.

`python -m benchmarks.draws DATA` with the folder of arc_easy_train.jsonl and arc_easy_test.jsonl; the adapter is that
of `benchmarks.serving`. The distance of S draws is that of their mean probabilities from those of 256 independent and
256 mirrored draws together: the largest difference of a choice, averaged over test questions. Draws are chosen out of
256 (herded: each so that the mean of those chosen so far is as near as possible to that of all) on training questions
that did not train.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from benchmarks.serving.adapters import prepare
from blora.adapter import attach, load_adapter
from blora.base_model import load_base_model
from blora.decision.temperature import temper
from blora.posterior.draws import Draws
from blora.posterior.noise import generator_of, standard_normal
from blora.posterior.posterior import Posterior
from blora.training.evaluate import predict_all
from blora.training.rows.examples import read_examples
from blora.training.rows.packed import pack_examples

__all__ = ["distance", "herd", "mirrored"]

RESULT = ROOT / "benchmarks" / "results" / "draws" / "result.json"
N_CANDIDATES, N_CHOOSING, N_TEST = 256, 80, 100
COUNTS = (2, 4, 8, 16, 32, 64)


def mirrored(posterior: Posterior, n_samples: int, generator: torch.Generator) -> Draws:
    """Return draws in pairs around the mean."""
    return posterior.sample_from(standard_normal(n_samples, generator).mirrored())


def herd(probs: Tensor, count: int) -> list[int]:
    """So many of the draws, each chosen so that the mean of those so far is nearest to that of all.

    Args:
        probs: (S, N, C) on the questions that choose.
        count: at most S.

    References:
        Welling, 2009, "Herding dynamical weights to learn".
    """
    flat = probs.flatten(1)
    target, total = flat.mean(0), torch.zeros(flat.shape[1], dtype=flat.dtype)
    chosen: list[int] = []
    for k in range(1, count + 1):
        distances = ((total + flat) / k - target).square().sum(1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += flat[chosen[-1]]
    return chosen


def distance(some: Tensor, reference: Tensor) -> float:
    """Between the mean of draws (S, N, C) and probabilities (N, C)."""
    return (some.mean(0) - reference).abs().amax(-1).mean().item()


def groups(probs: Tensor, count: int, reference: Tensor) -> list[float]:
    """Return the distance of each run of `count` consecutive draws, for at most eight runs."""
    return [distance(part, reference) for part in probs.split(count)[:8] if len(part) == count]


def summary(distances: Sequence[float]) -> dict[str, float]:
    """Mean and spread."""
    return {"mean": mean(distances), "std": stdev(distances) if len(distances) > 1 else 0.0}


def main() -> None:
    """Draws, chooses, measures and writes."""
    data = Path(sys.argv[1])
    path = prepare(data).late
    base = load_base_model()
    adapter = load_adapter(path, base)
    attach(base, adapter)
    config = adapter.config

    def rows(source: Path, start: int, count: int) -> list[Any]:
        return pack_examples(read_examples(str(source)), base, config.prompt)[start : start + count]

    def probabilities(draws: Draws, of: list[Any]) -> Tensor:
        return temper(predict_all(base.model, of, draws), config.sampling.temperature, config.sampling.lapse).double()

    choosing = rows(path.parent / "others.jsonl", 0, N_CHOOSING)
    test = rows(data / "arc_easy_test.jsonl", 0, N_TEST)
    with torch.no_grad():
        independent = adapter.posterior.sample(N_CANDIDATES, generator_of(config.sampling.seed))
        pairs = mirrored(adapter.posterior, N_CANDIDATES, generator_of(config.sampling.seed + 1))
    on_test, on_choosing = probabilities(independent, test), probabilities(independent, choosing)
    of_pairs = probabilities(pairs, test)
    order = herd(on_choosing, max(COUNTS))
    reference = torch.cat([on_test, of_pairs]).mean(0)
    points = [
        {
            "draws": count,
            "independent": summary(groups(on_test, count, reference)),
            "mirrored": summary(groups(of_pairs, count, reference)),
            "herded": summary([distance(on_test[order[:count]], reference)]),
        }
        for count in COUNTS
    ]
    result = {
        "points": points,
        "mean_of_the_posterior": distance(probabilities(adapter.posterior.mean(), test), reference),
        "n_candidates": N_CANDIDATES,
        "n_choosing": N_CHOOSING,
        "n_test": N_TEST,
        "order": order,
        **about("python -m benchmarks.draws"),
    }
    write(RESULT, result)


if __name__ == "__main__":
    main()
