"""Warnings about adapters that can be loaded and cannot answer."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blora.adapter import load_adapter
from blora.base_model import load_base_model
from blora.config import MethodName
from blora.server.engines.loading import handle_of

INFORMED = {"max_mutual_information": 0.1}


@pytest.mark.parametrize(
    ("policy", "n_samples", "method", "warned"),
    [
        (INFORMED, 1, "bayesian", True),
        (INFORMED, 4, "lora", True),
        (INFORMED, 2, "bayesian", False),
        ({"min_confidence": 0.5}, 1, "lora", False),
    ],
)
def test_an_adapter_without_the_draws_that_its_policy_needs_is_warned_of(
    policy: dict[str, float],
    n_samples: int,
    method: MethodName,
    warned: bool,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = load_base_model(str(folder / "tiny"), device="cpu", dtype="float32")
    adapter = load_adapter(folder / "one", base)
    posterior, sampling = (
        replace(adapter.config.posterior, method=method),
        replace(adapter.config.sampling, n_samples=n_samples),
    )
    config = replace(adapter.config, policy=policy, posterior=posterior, sampling=sampling)
    with caplog.at_level(logging.WARNING):
        handle_of(
            replace(adapter, config=config), device=torch.device("cpu"), dtype="float32", allow_uncalibrated=False
        )
    said = "Adapter one refuses every question that brings no policy: got policy max_mutual_information"
    assert (said in caplog.text) == warned
