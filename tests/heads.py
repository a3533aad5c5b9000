"""Heads with random weights, and labelled rows that one can be fitted to."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from blora.config import HeadConfig, PromptConfig
from blora.inference.grams import grams_of
from blora.posterior.decision_head import DecisionHead, Features, head_shapes
from blora.training.head.train import TrainedHead, train_head

LABELS = ("no", "yes", "maybe")


def head_of(config: HeadConfig, n_outputs: int, *, seed: int = 0) -> DecisionHead:
    """A head away from its start: every weight counts, and no two draws agree."""
    generator = torch.Generator().manual_seed(seed)
    prompt = PromptConfig(choices=LABELS[:n_outputs], readout="linear") if n_outputs > 1 else None
    shapes = head_shapes(config, prompt or PromptConfig(readout="pointer", choice_end="newline"))
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in tensors:
        if name == "grams":
            tensors[name] = _frequent(len(tensors[name]))
        if name.endswith(("scale", "deviation")):
            tensors[name] = tensors[name].abs() + 0.3
        elif name.endswith("directions"):
            tensors[name] = tensors[name].half().float()
    tensors["basis"] = torch.linalg.qr(tensors["basis"]).Q
    return DecisionHead(config, **tensors)


def _frequent(n_grams: int) -> torch.Tensor:
    """N-grams of characters and of words that the texts of tests have."""
    found = grams_of("red is the x, a question and its answer")[0]
    of_words = found % 2 == 1
    n_words = n_grams // 4
    chosen = [
        part[torch.arange(n) * len(part) // max(1, n)]
        for part, n in (
            (found[of_words], n_words),
            (found[~of_words], n_grams - n_words),
        )
    ]
    return torch.cat(chosen).sort().values


def texts_with(counts: torch.Tensor, grams: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """N-grams of texts that have each of M n-grams, by default 0, 1, ..., as often as (B, M) counts say."""
    ids = torch.arange(counts.shape[1]) if grams is None else grams
    return tuple(torch.stack([ids[row > 0], row[row > 0]]).int() for row in counts.long())


def row_after_row(features: Features, sizes: Sequence[int]) -> Features:
    """The same features without what stands beyond each question's choices."""
    n_choices = torch.tensor(sizes)
    present = torch.arange(features.states.shape[1]) < n_choices[:, None]
    owner = torch.arange(len(sizes)).repeat_interleave(n_choices)
    return Features(features.states[present], features.counts[present], features.prompt, owner)


def prefer_loras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training take the head above a LoRA, though the head alone may be better."""

    def poor(*args: Any, **named: Any) -> TrainedHead:
        found = train_head(*args, **named)
        return replace(found, trial=replace(found.trial, losses=found.trial.losses + 9.0))

    monkeypatch.setattr("blora.training.run.train_head", poor)
