"""Export of posterior draws as ordinary LoRA folders, for engines without support for posteriors.

The average of the draws' probabilities is the posterior predictive: draw s is draw s of the server's sample bank. Below
a decision head there is one LoRA, the same for every draw.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from blora.adapter import Adapter
from blora.adapter.lora import WEIGHTS_FILE
from blora.adapter.peft_files import peft_config, peft_tensors
from blora.base_model import BaseModel
from blora.config.checks import require
from blora.disk.atomic import new_folder
from blora.disk.tensors import write_tensors
from blora.errors import AdapterError
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.draws import Draws
from blora.posterior.noise import generator_of

__all__ = ["export_below", "export_draws"]


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
    if isinstance(adapter.posterior, HeadPosterior):
        other = "on a base model that generates, train it" if base.is_encoder else "train it"
        raise AdapterError(
            f"got adapter {adapter.name!r} with a decision head, whose draws are not LoRAs, expected one "
            f"without a head: {other} with --head none"
        )
    sampling = adapter.config.sampling
    n_samples = sampling.n_samples if n_samples is None else n_samples
    require(n_samples >= 1, f"n_samples = {n_samples}", "1 or more")
    with torch.no_grad():
        draws = adapter.posterior.sample(n_samples, generator_of(sampling.seed))
    return _write(adapter, base, Path(output), [draws.part(s, s + 1) for s in range(n_samples)])


def export_below(adapter: Adapter, base: BaseModel, output: Path) -> None:
    """Write the LoRA below an adapter's head as folder draw-000 of a new folder, as `export_draws` does.

    Raises:
        AdapterError: if the folder exists.
    """
    assert isinstance(adapter.posterior, HeadPosterior)  # the adapter has a head
    with torch.no_grad():
        _write(adapter, base, output, [adapter.posterior.lora.mean()])


def _write(adapter: Adapter, base: BaseModel, output: Path, draws: Sequence[Draws]) -> list[Path]:
    """Write single draws as folders of a new folder, and return them."""
    if output.exists():
        raise AdapterError(f"got {output}, which exists, expected a new folder: name another, or remove it")
    names = [f"draw-{s:03d}" for s in range(len(draws))]
    with new_folder(output) as partial:
        for name, draw in zip(names, draws, strict=True):
            (partial / name).mkdir()
            write_tensors(partial / name / WEIGHTS_FILE, peft_tensors(draw))
            peft_config(adapter.config, base).save_pretrained(str(partial / name))
    return [output / name for name in names]
