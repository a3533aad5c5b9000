"""What is reckoned from a model's shape is what the embedded model and the demo's adapter really take."""

import pytest

from benchmarks.server_process import ADAPTER
from benchmarks.sizing import MODELS, RANK, bank_bytes, skeleton, weight_bytes
from blora.adapter import load_adapter
from blora.base_model import BaseModel
from blora.posterior.bank import SampleBank


@pytest.mark.model
def test_weights_are_those_that_are_loaded(smollm2_bf16: BaseModel) -> None:
    loaded = sum(p.numel() * p.element_size() for p in smollm2_bf16.model.parameters())
    assert weight_bytes(skeleton(MODELS["SmolLM2-135M"])) == loaded


@pytest.mark.model
def test_a_bank_is_as_large_as_that_of_the_demo(smollm2_bf16: BaseModel) -> None:
    adapter = load_adapter(ADAPTER, smollm2_bf16)
    assert adapter.config.posterior.rank == RANK
    n_layers = len(adapter.config.modules) // 2  # q and v
    bank = SampleBank.draw(adapter.posterior, adapter.digest, 8, 0)
    held = sum(f.nbytes for factors in bank.draws.factors.values() for f in (factors.A, factors.B))
    assert bank_bytes(skeleton(MODELS["SmolLM2-135M"]), n_layers, n_samples=8) == held


def test_others_are_as_large_as_their_names_say() -> None:
    for name, billions in (("Llama-3.2-1B", 1.24), ("Llama-3.1-8B", 8.03), ("Llama-3.1-70B", 70.6)):
        assert sum(p.numel() for p in skeleton(MODELS[name]).parameters()) == pytest.approx(billions * 1e9, rel=0.01)
