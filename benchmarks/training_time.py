"""What a step of Bayesian-LoRA costs beside a step of plain LoRA: the two in turn, on the same batches, in one process.

`python -m benchmarks.training_time DATA` with the folder of arc_easy_train.jsonl. The trunk below the adapted layers is
computed beforehand for both; a step is forward, backward and optimiser.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.heads import ratio
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel, load_base_model
from blora.config import PosteriorConfig, PromptConfig
from blora.posterior.inject import inject, select_modules
from blora.posterior.posterior import Posterior
from blora.training.config import TrainConfig
from blora.training.lora.objective import Elbo
from blora.training.lora.optimizer import make_optimizer
from blora.training.lora.trunk import with_states
from blora.training.rows.examples import read_examples, split_examples
from blora.training.rows.packed import LabelledRow, collate_labelled, pack_examples

RESULT = ROOT / "benchmarks" / "results" / "training_time" / "result.json"
LAYERS = range(20, 30)
N_ROWS, BATCH_SIZE, WARM_UP = 400, 8, 5
CONFIGS = {"lora": PosteriorConfig(method="lora"), "bayesian": PosteriorConfig()}


class Stepper:
    """One method, a step at a time."""

    def __init__(self, base: BaseModel, modules: dict[str, tuple[int, int]], config: PosteriorConfig) -> None:
        settings = TrainConfig(work_dir=Path())
        self.posterior = Posterior(modules, config, 0)
        self.elbo = Elbo(
            base.model,
            self.posterior,
            n_train=N_ROWS,
            kl_weight=settings.kl_weight,
            n_draws=settings.train_draws,
            seed=0,
        )
        self.optimizer = make_optimizer(self.posterior, settings)

    def step(self, rows: Sequence[LabelledRow]) -> float:
        """Seconds of one step."""
        batch = collate_labelled(rows)
        began = time.perf_counter()
        self.optimizer.zero_grad()
        self.elbo(batch["batch"], batch["labels"]).total.backward()
        self.optimizer.step()
        return time.perf_counter() - began


def main() -> None:
    """Measures and writes the result file."""
    torch.manual_seed(0)
    base = load_base_model()
    examples = read_examples(str(Path(sys.argv[1]) / "arc_easy_train.jsonl"))
    part, _ = split_examples(examples, N_ROWS, 1, seed=0)
    modules = select_modules(base.model, ("q_proj", "v_proj"), LAYERS)
    inject(base.model, modules)
    rows = with_states(base.model, pack_examples(part, base, PromptConfig(template=part.template)), LAYERS[0])
    rows.sort(key=lambda row: row.row.n_tokens)
    steppers = {name: Stepper(base, modules, config) for name, config in CONFIGS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in CONFIGS}
    for start in range(0, N_ROWS, BATCH_SIZE):
        for name, stepper in steppers.items():
            seconds[name].append(stepper.step(rows[start : start + BATCH_SIZE]))
    timed = {name: each[WARM_UP:] for name, each in seconds.items()}
    ratios = ratio(timed, "bayesian", "lora")
    result = {
        "ratio": sum(timed["bayesian"]) / sum(timed["lora"]),
        "ratio_quartiles": [ratios["low"], ratios["high"]],
        "lora_step_s": median(timed["lora"]),
        "bayesian_step_s": median(timed["bayesian"]),
        "n_steps": len(timed["lora"]),
        "batch_size": BATCH_SIZE,
        "n_parameters": {
            name: sum(p.numel() for p in stepper.posterior.parameters()) for name, stepper in steppers.items()
        },
        "base_model": base.ref.id,
        "dtype": base.dtype_name,
        **about(f"python -m benchmarks.training_time {sys.argv[1]}"),
    }
    write(RESULT, result)


if __name__ == "__main__":
    main()
