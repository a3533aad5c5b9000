"""Small labelled data sets that a tiny model learns in seconds, and the arguments that train on them."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from blora.base_model import BaseModel
from blora.config import PosteriorConfig, PromptConfig
from blora.posterior.draws import Draws
from blora.posterior.posterior import Posterior
from blora.training.config import TrainConfig
from blora.training.evaluate import Evaluation, evaluate_nested
from blora.training.rows.examples import Example, ExampleSet
from blora.training.rows.packed import LabelledRow, pack_examples
from tests.scenarios import adapted_modules

CHOICES = ("warm", "cold")
COLOURS = ("red", "blue")


GOOD = {"question": "Which is warm?", "choices": ["ice", "fire"], "label": 1}


def row(**changes: Any) -> dict[str, Any]:
    """A valid row with some fields replaced; None removes a field."""
    return {key: value for key, value in (GOOD | changes).items() if value is not None}


def toy_row(index: int, label: int) -> dict[str, Any]:
    """A question whose colour gives the answer away."""
    return {"question": f"{COLOURS[label]} {index:02}", "choices": list(CHOICES), "label": label}


def toy_data(n_rows: int, *, seed: int = 0, flipped: bool = False) -> list[dict[str, Any]]:
    """Learnable rows; `flipped` teaches the opposite answer."""
    labels = random.Random(seed).choices([0, 1], k=n_rows)
    rows = [toy_row(index, label) for index, label in enumerate(labels)]
    return [row | {"label": 1 - row["label"]} for row in rows] if flipped else rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(base: BaseModel, rows: Iterable[Mapping[str, Any]]) -> list[LabelledRow]:
    """Packed rows with labels, as the trainer takes them."""
    examples = tuple(
        Example(f"toy:{n}", "question", row["question"], None, tuple(row["choices"]), row["label"])
        for n, row in enumerate(rows, start=1)
    )
    return pack_examples(
        ExampleSet("toy", "sha256:0", examples), base, PromptConfig(template="{prompt}", normalization="none")
    )


def evaluate(model: PreTrainedModel, rows: Sequence[LabelledRow], draws: Draws | None) -> Evaluation:
    """Metrics of the predictive mean over all draws or, if `draws` is None, of the base model."""
    return next(evaluate_nested(model, rows, draws, [draws.n_samples if draws is not None else 1]))


def toy_posterior(base: BaseModel, *, seed: int = 0, **settings: Any) -> Posterior:
    """A small posterior over the default modules."""
    small = {"rank": 2, "alpha": 4.0, "inducing_rows": 3, "inducing_cols": 3}
    return Posterior(adapted_modules(base.model), PosteriorConfig(**(small | settings)), seed)


def toy_config(work_dir: Path, **settings: Any) -> TrainConfig:
    """Settings for a training of a few epochs on toy rows."""
    return TrainConfig(work_dir=work_dir, **({"epochs": 3, "batch_size": 4, "patience": 10} | settings))


def train_arguments(base: Path, data: Path, output: Path, *more: str) -> list[str]:
    """The arguments of `blora train` on a tiny base model; `more` overrides the defaults."""
    posterior = ("--inducing-rows", "3", "--inducing-cols", "3", "--n-samples", "3")
    return [
        *("--data", str(data), "--output", str(output), "--base-model", str(base)),
        *("--device", "cpu", "--dtype", "float32", "--head", "none", "--rank", "2", "--alpha", "4"),
        *("--epochs", "2", "--batch-size", "4", *(() if "lora" in more else posterior)),
        *more,
    ]
