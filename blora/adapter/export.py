"""Export of posterior draws as ordinary LoRA folders, for engines without support for posteriors.

The average of the draws' probabilities is the posterior predictive: draw s is draw s of the server's sample bank.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from blora.adapter import Adapter
from blora.adapter.lora import WEIGHTS_FILE
from blora.adapter.peft_files import peft_config, peft_tensors
from blora.base_model import BaseModel
from blora.config.checks import require
from blora.disk.atomic import new_folder
from blora.errors import AdapterError
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.noise import generator_of

__all__ = ["export_draws"]


def export_draws(adapter: Adapter, base: BaseModel, output: Path | str, n_samples: int | None = None) -> list[Path]:
    """Write posterior draws as folders draw-000, draw-001 ... of a new folder, which appears complete or not at all.

    Args:
        adapter: the adapter whose posterior is drawn from.
        base: the adapter's base model.
        output: the folder, which must not exist.
        n_samples: number of draws, S; the adapter's own by default. The first S of more draws are the same draws.

    Returns:
        The S folders, each a LoRA that PEFT and vLLM can load.

    Raises:
        ConfigError: if there are no draws.
        AdapterError: if the folder exists, or the adapter has a decision head.
    """
    output = Path(output)
    if output.exists():
        raise AdapterError(f"got {output}, which exists, expected a new folder: name another, or remove it")
    if isinstance(adapter.posterior, HeadPosterior):
        raise AdapterError(
            f"got adapter {adapter.name!r} with a decision head, whose draws are not LoRAs, expected one "
            "without a head: train it with --head none"
        )
    sampling = adapter.config.sampling
    n_samples = sampling.n_samples if n_samples is None else n_samples
    require(n_samples >= 1, f"n_samples = {n_samples}", "1 or more")
    with torch.no_grad():
        draws = adapter.posterior.sample(n_samples, generator_of(sampling.seed))
    names = [f"draw-{s:03d}" for s in range(n_samples)]
    with new_folder(output) as partial:
        for s, name in enumerate(names):
            (partial / name).mkdir()
            save_file(peft_tensors(draws.part(s, s + 1)), partial / name / WEIGHTS_FILE, metadata={"format": "pt"})
            peft_config(adapter.config, base).save_pretrained(str(partial / name))
    return [output / name for name in names]
