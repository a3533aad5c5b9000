"""What was tried before the defaults: variants of the posterior and of scoring, judged on validation rows alone.

`python -m benchmarks.search DATA [LABEL ...]` with the folder of arc_easy_train.jsonl runs the variants that
benchmarks/results/search/search.jsonl does not have yet, or those named. The test files are never opened.
"""

import json
import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blora.base_model import BaseModel, load_base_model
from blora.config import NormalizationName, PosteriorConfig, PromptConfig
from blora.decision.calibration import fit_temperature, metrics, temper
from blora.posterior.bank import SampleBank
from blora.posterior.inject import inject, select_modules
from blora.posterior.posterior import Posterior
from training.config import TrainConfig
from training.data import read_examples, split_examples
from training.evaluate import predict_all
from training.provenance import machine, revision
from training.rows import pack_examples
from training.trainer import fit
from training.trunk import with_states

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "search" / "search.jsonl"
LAYERS = range(20, 30)
N_TRAIN, N_VALIDATION = 800, 400


@dataclass(frozen=True)
class Variant:
    """One thing that was tried.

    Attributes:
        label: in the table.
        posterior: its form.
        training: settings that are not the default.
        normalization: of a choice's log-probability.
        n_samples: draws at validation.
    """

    label: str
    posterior: PosteriorConfig
    training: dict[str, Any] = field(default_factory=dict)
    normalization: NormalizationName = "question"
    n_samples: int = 6


LORA = PosteriorConfig(method="lora")
TOP = PosteriorConfig(bayesian_layers=(26, 27, 28, 29))
VARIANTS = (
    Variant("LoRA, 6 epochs", LORA, {"epochs": 6}, n_samples=1),
    Variant("Bayesian, 6 epochs", PosteriorConfig(), {"epochs": 6, "kl_weight": 0.03}),
    Variant("Bayesian, 6 epochs, KL weight 0.1", PosteriorConfig(), {"epochs": 6, "kl_weight": 0.1}),
    Variant("LoRA, 3 epochs", LORA, {"epochs": 3}, n_samples=1),
    Variant("LoRA, 3 epochs, normalization none", LORA, {"epochs": 3}, "none", 1),
    Variant("LoRA, 3 epochs, normalization choice", LORA, {"epochs": 3}, "choice", 1),
    Variant("Bayesian in 4 layers, LoRA in 6, 3 epochs", TOP, {"epochs": 3, "kl_weight": 0.1}),
)


def crossfitted(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics as trained; with a temperature each half of the rows has that of the other half."""
    plain = metrics(log_probs.double().exp().mean(0), labels)
    probs = torch.empty(len(labels), log_probs.shape[-1], dtype=torch.float64)
    even = torch.arange(len(labels)) % 2 == 0
    for fitted, applied in ((even, ~even), (~even, even)):
        temperature = fit_temperature(log_probs[:, fitted], labels[fitted])
        probs[applied] = temper(log_probs[:, applied], temperature).mean(0)
    tempered = metrics(probs, labels)
    return {
        "accuracy": plain.accuracy,
        **{name: getattr(plain, name) for name in ("nll", "ece", "aurc")},
        "temperature": fit_temperature(log_probs, labels),
        **{f"{name}_tempered": getattr(tempered, name) for name in ("nll", "ece", "brier", "aurc")},
    }


def run(base: BaseModel, variant: Variant, data: Path) -> dict[str, Any]:
    """Trains a variant and validates its best epoch."""
    examples = read_examples(str(data / "arc_easy_train.jsonl"))
    prompt = PromptConfig(template=examples.template, normalization=variant.normalization)
    parts = split_examples(examples, N_TRAIN, N_VALIDATION, seed=0)
    modules = select_modules(base.model, ("q_proj", "v_proj"), LAYERS)
    inject(base.model, modules)
    train, validation = (with_states(base.model, pack_examples(part, base, prompt), LAYERS[0]) for part in parts)
    posterior = Posterior(modules, variant.posterior, 0)
    with tempfile.TemporaryDirectory() as work:
        config = TrainConfig(work_dir=Path(work), **variant.training)
        fitted = fit(base, posterior, train, validation, config)
    bank = SampleBank.draw(posterior, "in a search", variant.n_samples, 0)
    log_probs = predict_all(base.model, validation, bank.draws.to(base.device))
    return {
        "label": variant.label,
        "n_samples": variant.n_samples,
        "best_epoch": fitted.best_epoch,
        "epochs": config.epochs,
        **crossfitted(log_probs, torch.tensor([row.label for row in validation])),
        "command": shlex.join(["python", "-m", "benchmarks.search", *sys.argv[1:]]),
        "machine": machine(),
        "revision": revision(),
    }


def main() -> None:
    """Runs what is missing."""
    data, wanted = Path(sys.argv[1]), sys.argv[2:]
    done = {json.loads(line)["label"] for line in RESULT.read_text().splitlines()} if RESULT.is_file() else set()
    base = load_base_model()
    for variant in VARIANTS:
        if variant.label in wanted or not (wanted or variant.label in done):
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            with RESULT.open("a") as file:
                file.write(json.dumps(run(base, variant, data)) + "\n")


if __name__ == "__main__":
    main()
