"""Plain LoRA directories: those of PEFT itself, and those that are not plain."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blora.errors import AdapterError
from blora.lora import balanced, lora_shape, read_lora
from blora.posterior.draws import Factors
from tests.loras import make_lora
from tests.scenarios import adapted_modules, tiny_model


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return make_lora(tmp_path / "lora")


def change(lora: Path, **settings: Any) -> None:
    file = lora / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_what_peft_saved_is_described_and_read(lora: Path) -> None:
    shape = lora_shape(lora)
    assert (shape.rank, shape.alpha) == (3, 6.0)
    assert shape.modules == adapted_modules(tiny_model())
    factors = read_lora(lora, shape.modules, shape.rank, shape.alpha)
    tensors = load_file(lora / "adapter_model.safetensors")
    for name, pair in factors.items():
        assert torch.equal(pair.A[0], tensors[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(pair.B[0], tensors[f"base_model.model.{name}.lora_B.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"bias": "all"}, "bias"),
        ({"r": "three"}, "expected numbers"),
        ({"r": 4}, "with rank 4"),
    ],
)
def test_a_lora_that_is_not_plain_is_refused(lora: Path, settings: dict[str, Any], message: str) -> None:
    change(lora, **settings)
    with pytest.raises(AdapterError, match=message):
        lora_shape(lora)


def test_other_tensors_and_other_files_are_refused(lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lora / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2)}, lora / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"lm_head\.weight"):
        lora_shape(lora)
    (lora / "adapter_model.safetensors").write_text("pickle")
    with pytest.raises(AdapterError, match="not a safetensors file"):
        lora_shape(lora)
    with pytest.raises(AdapterError, match="check the path"):
        lora_shape(tmp_path / "nowhere")


def test_another_rank_or_other_modules_are_refused(lora: Path) -> None:
    shape = lora_shape(lora)
    with pytest.raises(AdapterError, match="got r = 3"):
        read_lora(lora, shape.modules, 4, shape.alpha)
    with pytest.raises(AdapterError, match="match no module"):
        read_lora(lora, dict(list(shape.modules.items())[:1]), shape.rank, shape.alpha)


def test_balancing_keeps_the_update_and_shares_its_size() -> None:
    generator = torch.Generator().manual_seed(1)
    A, B = (torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in ((3, 7), (5, 3)))
    found = balanced(Factors(100 * A, B))
    torch.testing.assert_close(found.B @ found.A, 100 * B @ A)
    torch.testing.assert_close(found.A @ found.A.mT, found.B.mT @ found.B, rtol=1e-9, atol=1e-9)
    assert found.A.shape == A.shape
    assert found.B.shape == B.shape
