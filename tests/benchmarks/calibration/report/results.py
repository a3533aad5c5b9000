"""Result files as the experiments write them, made up: real metrics of made-up predictions."""

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.calibration.report.records import read_results
from benchmarks.calibration.report.study import Study, studies
from blora.decision.curves import auroc, reliability, risk_coverage
from blora.decision.metrics import metrics
from blora.decision.temperature import temper
from blora.scores import entropy, mutual_information

Result = dict[str, Any]

EASY, CHALLENGE = "arc_easy_test", "arc_challenge_test"
SETS = {EASY: False, CHALLENGE: True, "obqa_test": True}
# Label, single model, signal (accuracy), scale (overconfidence) and draws.
METHODS: dict[str, tuple[str, bool, float, float, int]] = {
    "base": ("Base model", True, 0.7, 2.6, 1),
    "lora": ("LoRA", True, 1.5, 4.0, 1),
    "lora_best": ("LoRA, best step", True, 1.5, 2.6, 1),
    "dropout": ("MC dropout", True, 1.5, 3.0, 8),
    "laplace": ("Laplace-LoRA", True, 1.4, 1.6, 8),
    "tfb": ("TFB", True, 1.45, 1.9, 8),
    "blob": ("BLoB", True, 1.4, 1.5, 8),
    "bayesian": ("Bayesian-LoRA", True, 1.5, 1.2, 8),
    "ensemble": ("Ensemble of 3", False, 1.6, 2.0, 3),
}


@functools.cache
def made_up(method: str, seed: int = 0, trained_on: str = "arc_easy", n_examples: int = 600) -> Result:
    """One run with plausible numbers; copy it before changing it."""
    label, single, signal, scale, S = METHODS[method]
    generator = torch.Generator().manual_seed(1000 * seed + list(METHODS).index(method))
    evaluations = []
    for dataset, shift in SETS.items():
        labels = torch.randint(4, (n_examples,), generator=generator)
        log_probs = _log_probs(labels, signal * (0.5 if shift else 1), scale, S, generator)
        for tempered in (False, True):
            probs = temper(log_probs, 1.1 * scale if tempered else 1.0)
            evaluations.append(_evaluation(dataset, shift, tempered, probs, labels))
    training = {
        "seconds": 150.0 + seed + 30 * (method == "bayesian"),
        "n_examples": 800,
        "epochs": 3,
        "n_parameters": 417000,
    }
    return {
        "method": method,
        "label": label,
        "single_model": single,
        "trained_on": trained_on,
        "seed": seed,
        "n_samples": S,
        "temperature": 1.1 * scale,
        "training": None if method == "base" else training,
        "validation": {"n_examples": 400, "nll": 0.8},
        "evaluations": evaluations,
        "machine": {"processor": "Toy CPU", "cores": 2, "torch": "2"},
        "revision": "0123456789ab",
        "command": "blora experiment",
        "base_model": "toy/model",
        "dtype": "bfloat16",
    }


def _log_probs(labels: Tensor, signal: float, scale: float, S: int, generator: torch.Generator) -> Tensor:
    """(S, B, 4) of draws around logits in which the right choice stands out by the signal."""
    B = len(labels)
    logits = torch.randn(B, 4, generator=generator) + signal * torch.nn.functional.one_hot(labels, 4)
    draws = logits + 0.4 * (S > 1) * torch.randn(S, B, 4, generator=generator)
    return (scale * draws).double().log_softmax(-1)


def _evaluation(dataset: str, shift: bool, tempered: bool, probs: Tensor, labels: Tensor) -> Result:
    mean = probs.mean(0)
    confidence, top = mean.max(-1)
    S = len(probs)
    scores = {
        "confidence": 1 - confidence,
        "predictive_entropy": entropy(mean),
        "mutual_information": mutual_information(probs),
    }
    error = {name: auroc(score, top != labels) for name, score in scores.items()}
    if S == 1:
        error["mutual_information"] = None
    return {
        "dataset": dataset,
        "digest": f"sha256:{dataset}",
        "shift": shift,
        "tempered": tempered,
        "n_examples": len(labels),
        **metrics(mean, labels).to_dict(),
        "mean_confidence": confidence.mean().item(),
        "mean_mutual_information": mutual_information(probs).mean().item(),
        "reliability": [b.to_dict() for b in reliability(mean, labels)],
        "risk_coverage": risk_coverage(confidence, top == labels),
        "auroc_error": error,
        "auroc_ood": error if shift else None,
        "seconds": 3.5,
    }


def exact(
    method: str,
    seed: int | None,
    tests: Mapping[str, Result],
    tempered: Mapping[str, Result] | None = None,
    recalibrated: Mapping[str, Result] | None = None,
    recalibration: Mapping[str, float] | None = None,
    **fields: Any,
) -> Result:
    """A run with these numbers by test set, as trained and, if given, in the other treatments; other fields replaced."""
    result = copy.deepcopy(made_up(method, 0, n_examples=20))
    templates = {e["dataset"]: e for e in result["evaluations"]}
    evaluations = []
    for marks, numbers in (
        ((False, False), tests),
        ((True, False), tempered or {}),
        ((True, True), recalibrated or {}),
    ):
        for dataset, changes in numbers.items():
            treatment = dict(zip(("tempered", "recalibrated"), marks, strict=True))
            evaluations.append({**templates[dataset], **treatment, **changes})
    return result | {"seed": seed, "evaluations": evaluations, "recalibration": recalibration} | fields


def write_results(folder: Path, results: Mapping[str, Result]) -> Path:
    """A file for each, by name."""
    for name, result in results.items():
        target = folder / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result))
    return folder


def numbers(accuracy: float = 0.5, nll: float = 1.0, ece: float = 0.1, brier: float = 0.5, aurc: float = 0.3) -> Result:
    """The metrics of a table."""
    return {"accuracy": accuracy, "nll": nll, "ece": ece, "brier": brier, "aurc": aurc}


def study(tmp_path: Path, *results: Result) -> Study:
    """The one study of these results, read from files."""
    [found] = studies(read_results(write_results(tmp_path, {str(i): result for i, result in enumerate(results)})))
    return found
