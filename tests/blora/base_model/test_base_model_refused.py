"""Base models that are refused, each with what to do about it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from torch import Tensor

from blora.base_model import load_base_model
from blora.errors import BaseModelError
from tests.blora.adapters import rewrite_json
from tests.blora.base_model.test_base_model import saved
from tests.loras import make_lora
from tests.scenarios import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("spec", ["/no/such/folder", "./none", "not a name!"])
def test_a_model_that_does_not_exist_is_refused(spec: str) -> None:
    with pytest.raises(BaseModelError, match=f"got base model '{spec}', which does not load.*expected embedded"):
        load_base_model(spec, device="cpu", dtype="float32")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="which does not load"):
        load_base_model(str(tmp_path), device="cpu", dtype="float32")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny")
    (path / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="which does not load"):
        load_base_model(str(path), device="cpu", dtype="float32")


def test_a_folder_with_broken_weights_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny")
    (path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(BaseModelError, match="which does not load"):
        load_base_model(str(path), device="cpu", dtype="float32")


def without_head(tensors: dict[str, Tensor]) -> None:
    del tensors["lm_head.weight"]


def without_projection(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.mlp.down_proj.weight"]


def with_narrow_head(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, 1:].contiguous()


@pytest.mark.parametrize("change", [without_head, without_projection, with_narrow_head])
def test_weights_that_would_be_random_are_refused(tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = saved(tmp_path / "tiny", "qwen2")
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BaseModelError, match=r"in which 1 weights are missing or .*, such as .*(head|down_proj)\.weight"
    ):
        load_base_model(str(path), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        ("config.json", "[]"),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}'),
        ("tokenizer.json", "{}"),
    ],
)
def test_a_folder_with_a_file_of_another_form_is_refused(tmp_path: Path, file: str, contents: str) -> None:
    path = saved(tmp_path / "tiny")
    (path / file).write_text(contents)
    with pytest.raises(BaseModelError, match="which does not load"):
        load_base_model(str(path), device="cpu", dtype="float32")


def test_a_lora_is_no_base_model(tmp_path: Path) -> None:
    lora = make_lora(tmp_path / "lora")
    tiny_tokenizer().save_pretrained(lora)
    its_base = {"base_model_name_or_path": str(saved(tmp_path / "tiny"))}
    rewrite_json(lambda raw: raw.update(its_base))(lora / "adapter_config.json")
    with pytest.raises(BaseModelError, match="which is a LoRA's, expected a model without one"):
        load_base_model(str(lora), device="cpu", dtype="float32")


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny")
    (path / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), path / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="which does not load"):
        load_base_model(str(path), device="cpu", dtype="float32")


def test_a_gguf_file_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BaseModelError, match=r"got base model '/no/such\.gguf', expected a file that exists"):
        load_base_model("/no/such.gguf", device="cpu", dtype="float32")


def test_a_broken_gguf_file_is_refused_and_leaves_nothing_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("BLORA_CACHE_DIR", str(cache))
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"no model")
    with pytest.raises(BaseModelError, match=r"broken\.gguf"):
        load_base_model(str(gguf), device="cpu", dtype="float32")
    assert list(cache.iterdir()) == []


def test_a_gguf_file_without_some_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLORA_CACHE_DIR", str(tmp_path / "cache"))
    writer = GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_vocab_size(8)
    writer.add_context_length(16)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tensor("token_embd.weight", torch.ones(8, 8).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BaseModelError, match=r"part\.gguf', in which .* weights are missing"):
        load_base_model(str(tmp_path / "part.gguf"), device="cpu", dtype="float32")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_conversion_left_is_cleared_away_a_day_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLORA_CACHE_DIR", str(tmp_path))
    for name in (".partial-old", ".partial-at-work"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".partial-old", (0, 0))
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    with pytest.raises(BaseModelError):
        load_base_model(str(tmp_path / "broken.gguf"), device="cpu", dtype="float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-at-work", "broken.gguf"]


@pytest.mark.parametrize("dtype", ["float64", "int8", "half", ""])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(BaseModelError, match=f"got dtype '{dtype}', expected auto or one of float32"):
        load_base_model("embedded", device="cpu", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cpu:x", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused(device: str) -> None:
    with pytest.raises(BaseModelError, match=f"got device '{device}', which torch cannot use here"):
        load_base_model("embedded", device=device, dtype="float32")
