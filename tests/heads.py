"""Heads with random weights, and labelled rows that one can be fitted to."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from blora.config import HeadConfig, PromptConfig
from blora.posterior.decision_head import DecisionHead, Features, head_shapes
from blora.training.head.train import TrainedHead, train_head

LABELS = ("no", "yes", "maybe")


def head_of(config: HeadConfig, n_outputs: int, *, seed: int = 0) -> DecisionHead:
    """A head away from its start: every weight counts, and no two draws agree."""
    generator = torch.Generator().manual_seed(seed)
    prompt = PromptConfig(choices=LABELS[:n_outputs], readout="linear") if n_outputs > 1 else None
    shapes = head_shapes(config, prompt or PromptConfig(readout="pointer", choice_end="newline"))
    if n_outputs == 1 and config.n_grams:
        shapes |= {"count_scale": (config.n_grams,), "count_weight": (config.n_grams, 1)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in tensors:
        if name.endswith(("scale", "deviation")):
            tensors[name] = tensors[name].abs() + 0.3
        elif name.endswith("directions"):
            tensors[name] = tensors[name].half().float()
    tensors["basis"] = torch.linalg.qr(tensors["basis"]).Q
    return DecisionHead(config, **tensors)


def row_after_row(features: Features, sizes: Sequence[int]) -> Features:
    """The same features without what stands beyond each question's choices."""
    n_choices = torch.tensor(sizes)
    present = torch.arange(features.states.shape[1]) < n_choices[:, None]
    owner = torch.arange(len(sizes)).repeat_interleave(n_choices)
    return Features(features.states[present], features.counts[present], features.prompt, owner)


def prefer_loras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training take the head above a LoRA, though the head alone may be better."""

    def poor(*args: Any) -> TrainedHead:
        found = train_head(*args)
        return replace(found, trial=replace(found.trial, metrics=replace(found.trial.metrics, nll=9.0)))

    monkeypatch.setattr("blora.training.run.train_head", poor)
