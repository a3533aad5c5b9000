"""LoRAs that PEFT itself made and saved, and one of ours for the embedded model."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.server_process import ADAPTER
from blora.adapter import read_config, save_adapter
from blora.base_model import BaseModel
from blora.config import PosteriorConfig, QuestionConfig
from blora.posterior.inject import default_targets, parse_layers, select_modules
from blora.posterior.posterior import Posterior
from tests.scenarios import tiny_model


def make_lora(folder: Path, *, rank: int = 3, zero: bool = False, architecture: str = "llama") -> Path:
    """A LoRA on the query and value projections of a tiny model, its update not zero unless asked for."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls what transformers is about to remove
        model = get_peft_model(tiny_model(architecture), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and not zero:
                parameter.normal_(std=0.2, generator=generator)
    model.save_pretrained(str(folder))
    return folder


def lora_of_the_demos_task(folder: Path, base: BaseModel) -> Path:
    """An adapter of the embedded model for the demo's choices: a posterior over a random LoRA in the last two layers."""
    return random_lora(folder, base, read_config(ADAPTER).prompt.choices)


def random_lora(
    folder: Path, base: BaseModel, choices: tuple[str, ...] | None, question: QuestionConfig | None = None
) -> Path:
    """An adapter of the embedded model for some choices: a posterior over a random LoRA in the last two layers."""
    demo = read_config(ADAPTER)
    targets = default_targets(base.model)
    modules = select_modules(base.model, targets, parse_layers("last:2", base.model.config.num_hidden_layers))
    config = replace(
        demo,
        target_modules=targets,
        modules=modules,
        posterior=PosteriorConfig(),
        prompt=replace(demo.prompt, readout="scores", choices=choices),
        sampling=replace(demo.sampling, n_samples=4),
        head=None,
        familiarity=None,
        question=question,
        training={},
    )
    posterior = Posterior(modules, config.posterior, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in posterior.named_parameters():
            if name.endswith("inducing_mean"):
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    save_adapter(folder, posterior, config, base)
    return folder
