"""Adapters of a tiny model with a head on the last layer's states, which vLLM returns."""

from pathlib import Path

import torch

from blora.adapter import save_adapter
from blora.base_model import load_base_model
from blora.config import AdapterConfig, HeadConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.inference.packing import pack
from blora.inference.reading import read_rows
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.inject import inject
from blora.posterior.posterior import Posterior
from blora.training.head.familiarity import fit_familiarity
from tests.heads import LABELS, head_of
from tests.scenarios import adapted_modules, random_draws, tiny_model, tiny_tokenizer

ADAPTERS = ("linear", "pointer", "linear-lora", "pointer-lora")
LAYER, HIDDEN = 2, 32


def write_base_and_heads(root: Path) -> Path:
    """Write the base model `tiny` and `ADAPTERS` into a folder, and return it."""
    tiny_model().save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    for name in ADAPTERS:
        write_head(root, name)
    return root


def write_head(root: Path, name: str, depths: tuple[int, ...] = (LAYER,)) -> None:
    """Write an adapter with a familiarity, of the readout that its name begins with, above a LoRA if it ends so."""
    base = load_base_model(str(root / "tiny"), device="cpu", dtype="float32")
    linear = name.startswith("linear")
    modules = adapted_modules(base.model) if name.endswith("lora") else {}
    lora = Posterior(modules, PosteriorConfig(method="lora", rank=3), seed=0)
    if modules:
        lora.set_mean(random_draws(modules, 1).factors)
    inject(base.model, modules)
    config = HeadConfig(depths=depths, n_states=len(depths) * HIDDEN, n_directions=4, n_grams=8 if linear else 0)
    prompt = PromptConfig(
        choices=LABELS if linear else None, readout="linear" if linear else "pointer", choice_end="newline"
    )
    rows = [
        pack(base.tokenizer, prompt=f"red {i:02}", choices=LABELS, config=prompt, max_length=200) for i in range(60)
    ]
    with torch.no_grad():
        read = [read_rows(base.model, part, config, lora.mean()) for part in (rows[:40], rows[40:])]
    own, other = (features.choices() for features in read)
    assert read[0].prompt is not None
    assert read[1].prompt is not None
    choices = (own[0], other) if own is not None and other is not None else None
    familiarity = fit_familiarity(depths, read[0].prompt, read[1].prompt, choices=choices).familiarity
    posterior = HeadPosterior(head_of(config, len(LABELS) if linear else 1), lora)
    made = AdapterConfig(
        base_model=base.ref,
        target_modules=("q_proj", "v_proj") if modules else (),
        modules=modules,
        posterior=lora.config,
        prompt=prompt,
        sampling=SamplingConfig(n_samples=4, seed=7, temperature=30.0, lapse=0.1),
        head=config,
        familiarity=familiarity.config,
    )
    save_adapter(root / name, posterior, made, base, familiarity)
