"""What is reckoned from a model's shape is what the embedded model and a posterior on it really take."""

import pytest

from benchmarks.sizing import MODELS, RANK, bank_bytes, skeleton, weight_bytes
from blora.base_model import BaseModel
from blora.config import PosteriorConfig
from blora.posterior.inject import default_targets, select_modules
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior


@pytest.mark.model
def test_weights_are_those_that_are_loaded(smollm2_bf16: BaseModel) -> None:
    loaded = sum(p.numel() * p.element_size() for p in smollm2_bf16.model.parameters())
    assert weight_bytes(skeleton(MODELS["SmolLM2-135M"])) == loaded


@pytest.mark.model
def test_a_bank_is_as_large_as_that_of_a_posterior(smollm2_bf16: BaseModel) -> None:
    model = smollm2_bf16.model
    modules = select_modules(model, default_targets(model), range(10, 30))
    draws = Posterior(modules, PosteriorConfig(rank=RANK), seed=0).sample(8, generator_of(0))
    held = sum(f.nbytes for factors in draws.factors.values() for f in (factors.A, factors.B))
    assert bank_bytes(skeleton(MODELS["SmolLM2-135M"]), 20, n_samples=8) == held


def test_others_are_as_large_as_their_names_say() -> None:
    for name, billions in (("Llama-3.2-1B", 1.24), ("Llama-3.1-8B", 8.03), ("Llama-3.1-70B", 70.6)):
        assert sum(p.numel() for p in skeleton(MODELS[name]).parameters()) == pytest.approx(billions * 1e9, rel=0.01)
