"""LoRAs that PEFT itself made and saved."""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

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
