"""What was tried before the defaults: variants of the posterior and of scoring, judged on rows of the training file.

`python -m benchmarks.search DATA [LABEL ...]` with the folder of arc_easy_train.jsonl runs the variants that
benchmarks/results/search/search.jsonl does not have yet, or those named. Of the file's rows 800 train, 400 choose the
epoch and the recalibration, and all the others judge. The test files are never opened.
"""

import json
import re
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.calibration.methods import WIDE, WIDE_KL_WEIGHT, WIDE_LEARNING_RATE
from benchmarks.calibration.treatments import Predictions, Treatments
from benchmarks.result_files import read_lines
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel, load_base_model
from blora.config import NormalizationName, PosteriorConfig, PromptConfig
from blora.decision.metrics import metrics
from blora.posterior.bank import SampleBank
from blora.posterior.inject import eject, inject, parse_layers, select_modules
from blora.posterior.point import PointFactor
from blora.posterior.posterior import Posterior
from blora.training.config import TrainConfig
from blora.training.evaluate import predict_all
from blora.training.lora.trainer import fit
from blora.training.lora.trunk import with_states
from blora.training.provenance import machine, revision
from blora.training.rows.examples import ExampleSet, read_examples, split_examples
from blora.training.rows.packed import LabelledRow, labels_of, lengths_of, pack_examples

RESULT = ROOT / "benchmarks" / "results" / "search" / "search.jsonl"
WORK = ROOT / "runs" / "search"
N_TRAIN, N_VALIDATION = 800, 400
COMPARED = ("nll", "ece", "brier", "aurc")
LAYERS = "last:10"
QUERY_VALUE = ("q_proj", "v_proj")
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Variant:
    """One thing that was tried.

    Attributes:
        label: in the table.
        posterior: its form.
        training: settings that are not the default.
        targets: names of the adapted modules.
        bayesian: the adapted decoder layers that get a posterior, None for all.
        start: label of the LoRA whose factors are the mean to start from, and stay as they are where there is no
            posterior.
        normalization: of a choice's log-probability.
        n_samples: draws at validation.
    """

    label: str
    posterior: PosteriorConfig
    training: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = QUERY_VALUE
    bayesian: str | None = None
    start: str | None = None
    normalization: NormalizationName = "question"
    n_samples: int = 6


LORA = PosteriorConfig(method="lora")
FULL = PosteriorConfig()
# How a posterior with a wide start is trained: the default until the narrow one became it.
EARLIER = {"kl_weight": WIDE_KL_WEIGHT, "learning_rate": WIDE_LEARNING_RATE}
VARIANTS = (
    Variant("LoRA", LORA, {"epochs": 4}, n_samples=1),
    Variant(
        "Bayesian in 4 layers around the LoRA",
        replace(WIDE, lambda_init=0.1),
        EARLIER | {"epochs": 3},
        bayesian="last:4",
        start="LoRA",
    ),
    Variant("Bayesian", WIDE, EARLIER | {"epochs": 4}),
    Variant("Bayesian in 2 layers, LoRA in 8", WIDE, EARLIER | {"epochs": 4}, bayesian="last:2"),
    Variant("Bayesian, narrow start, KL weight 0.01", FULL, EARLIER | {"epochs": 6, "kl_weight": 0.01}),
    Variant("Bayesian, narrow start, KL weight 0.01, learning rate 0.04", FULL, {"epochs": 6}),
    Variant(
        "Bayesian, narrow start, 32 x 32 inducing weights",
        replace(FULL, inducing_rows=32, inducing_cols=32),
        {"epochs": 6},
    ),
    Variant("Bayesian in 4 layers, LoRA in 6, narrow start", FULL, {"epochs": 6}, bayesian="last:4"),
    Variant("Bayesian, KL weight 0.3", WIDE, EARLIER | {"epochs": 4, "kl_weight": 0.3}),
    Variant("Bayesian, narrow start, matrix normal", replace(FULL, family="matrix_normal"), {"epochs": 6}),
    Variant("LoRA, every module", LORA, {"epochs": 4}, targets=EVERY, n_samples=1),
    Variant("Bayesian, narrow start, every module", FULL, {"epochs": 6}, targets=EVERY),
    Variant("LoRA, normalization none", LORA, {"epochs": 4}, normalization="none", n_samples=1),
    Variant("LoRA, normalization choice", LORA, {"epochs": 4}, normalization="choice", n_samples=1),
)


def parts_of(examples: ExampleSet) -> tuple[ExampleSet, ExampleSet, ExampleSet]:
    """Training, validation and development rows of one file, disjoint."""
    train, rest = split_examples(examples, N_TRAIN, len(examples.examples) - N_TRAIN, seed=0)
    validation, development = split_examples(rest, N_VALIDATION, len(rest.examples) - N_VALIDATION, seed=0)
    return train, validation, development


def read_parts(base: BaseModel, data: Path) -> list[list[LabelledRow]]:
    """`parts_of` the training file as rows, run once up to the layer that most variants adapt first."""
    examples = read_examples(str(data / "arc_easy_train.jsonl"))
    prompt = PromptConfig(template=examples.template)
    n_layers = base.model.config.get_text_config().num_hidden_layers
    [first, *_] = parse_layers(LAYERS, n_layers)
    return [with_states(base.model, pack_examples(part, base, prompt), first) for part in parts_of(examples)]


def run(base: BaseModel, variant: Variant, parts: list[list[LabelledRow]]) -> dict[str, Any]:
    """Trains a variant and judges its best epoch."""
    n_layers = base.model.config.get_text_config().num_hidden_layers
    eject(base.model)
    modules = select_modules(base.model, variant.targets, parse_layers(LAYERS, n_layers))
    inject(base.model, modules)
    train, validation, development = (
        [replace(row, row=replace(row.row, normalization=variant.normalization)) for row in part] for part in parts
    )
    posterior = _posterior(variant, modules, n_layers)
    config = TrainConfig(work_dir=WORK / _file(variant.label), **variant.training)
    fitted = fit(base, posterior, train, validation, config)
    save_file(posterior.state_dict(), WORK / f"{_file(variant.label)}.safetensors")
    draws = SampleBank.draw(posterior, "in a search", variant.n_samples, 0).draws

    def predictions(rows: list[LabelledRow]) -> Predictions:
        return Predictions(predict_all(base.model, rows, draws), labels_of(rows), lengths_of(rows))

    return {
        "label": variant.label,
        "n_samples": variant.n_samples,
        "best_epoch": fitted.best_epoch,
        "epochs": config.epochs,
        "training_seconds": fitted.seconds,
        "n_development": len(development),
        **judge(predictions(development), Treatments.fit(predictions(validation))),
        "command": shlex.join(["python", "-m", "benchmarks.search", "DATA", variant.label]),
        "machine": machine(),
    }


def judge(found: Predictions, treatments: Treatments) -> dict[str, Any]:
    """Metrics as they are, and in the treatments that other rows have chosen."""
    plain, tempered, recalibrated = (metrics(found.under(done).mean(0), found.labels) for _, done in treatments.all())
    return {
        **{name: getattr(plain, name) for name in ("accuracy", *COMPARED)},
        "temperature": treatments.temperature,
        **{f"{name}_tempered": getattr(tempered, name) for name in COMPARED},
        "recalibration": treatments.recalibration._asdict(),
        **{f"{name}_recalibrated": getattr(recalibrated, name) for name in COMPARED},
    }


def _posterior(variant: Variant, modules: dict[str, tuple[int, int]], n_layers: int) -> Posterior:
    """As it is before training."""
    form = variant.posterior
    if variant.bayesian is not None:
        form = replace(form, bayesian_layers=parse_layers(variant.bayesian, n_layers))
    posterior = Posterior(modules, form, 0)
    if variant.start is not None:
        lora = Posterior(modules, LORA, 0)
        lora.load_state_dict(load_file(WORK / f"{_file(variant.start)}.safetensors"))
        posterior.set_mean(lora.mean().factors)
        for module in posterior.modules():
            if isinstance(module, PointFactor):
                module.requires_grad_(False)
    return posterior


def _file(label: str) -> str:
    return re.sub(r"\W+", "-", label).lower()


def main() -> None:
    """Run the trials that have no result yet."""
    data, wanted = Path(sys.argv[1]), sys.argv[2:]
    done = {tried["label"] for tried in read_lines(RESULT)} if RESULT.is_file() else set()
    code = {"revision": revision()}  # of what runs, whatever is committed meanwhile
    base = load_base_model()
    parts = read_parts(base, data)
    for variant in VARIANTS:
        if variant.label in wanted or not (wanted or variant.label in done):
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            with RESULT.open("a") as file:
                file.write(json.dumps(run(base, variant, parts) | code) + "\n")


if __name__ == "__main__":
    main()
