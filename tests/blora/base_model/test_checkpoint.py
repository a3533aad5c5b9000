"""Checkpoints: quantised ones, those of models that also read images, and weights that would be left out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GptOssConfig,
    LlavaConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from blora.base_model import load_base_model
from blora.errors import BaseModelError
from blora.inference.architecture import check_packing
from tests.blora.adapters import rewrite_json
from tests.blora.base_model.test_base_model import saved
from tests.scenarios import tiny_tokenizer

# The sixteen values of a 4-bit float, by its code.
FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
    """Change the weights of a model's folder, and return what they were."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    before = dict(tensors)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return before


def quantised(path: Path, **settings: object) -> None:
    rewrite_json(lambda raw: raw.update(quantization_config=settings))(path / "config.json")


def to_fp8(scale: str) -> Callable[[dict[str, Tensor]], None]:
    """Return the change of linear layers to 8-bit floats, each with a scale of this name beside it."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            factor = tensors[name].abs().max() / 448
            tensors[name] = (tensors[name] / factor).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + scale] = factor

    return change


def saved_model(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_eight_bit_floats_are_read_as_plain_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny")
    before = rewritten(path, to_fp8("weight_scale_inv"))
    quantised(path, quant_method="fp8", activation_scheme="dynamic", weight_block_size=None)
    weights = load_base_model(str(path), device="cpu", dtype="float32").model.state_dict()
    for name, weight in before.items():
        assert torch.allclose(weights[name], weight.float(), rtol=0.1, atol=1e-3)


def test_four_bit_floats_of_experts_are_read_as_plain_weights(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16, "vocab_size": 64}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = GptOssConfig(**size, **heads, num_local_experts=2, num_experts_per_tok=1)
    path = saved_model(tmp_path / "tiny", AutoModelForCausalLM.from_config(config).to(torch.bfloat16))
    expected = {}

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
            n_experts, n_in, n_out = tensors.pop(name).shape
            codes = torch.randint(16, (n_experts, n_out, n_in // 32, 32))
            tensors[f"{name}_blocks"] = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
            tensors[f"{name}_scales"] = torch.full((n_experts, n_out, n_in // 32), 127 - 6, dtype=torch.uint8)
            expected[name] = (FP4[codes] * 2.0**-6).reshape(n_experts, n_out, n_in).mT

    rewritten(path, change)
    quantised(path, quant_method="mxfp4")
    weights = load_base_model(str(path), device="cpu", dtype="float32").model.state_dict()
    assert len(expected) == 2
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight)


def test_a_quantisation_of_the_language_model_alone_counts_too(tmp_path: Path) -> None:
    path = saved_model(tmp_path / "tiny", tiny_llava())
    method = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    rewrite_json(lambda raw: raw["text_config"].update(method))(path / "config.json")
    with pytest.raises(BaseModelError, match="quantised by gptq, expected plain ones"):
        load_base_model(str(path), device="cpu", dtype="float32")


@pytest.mark.parametrize("settings", [{"quant_method": "gptq", "bits": 4}, {"load_in_4bit": True}])
def test_another_quantisation_is_refused_whatever_is_installed(tmp_path: Path, settings: dict[str, object]) -> None:
    path = saved(tmp_path / "tiny")
    quantised(path, **settings)
    method = settings.get("quant_method", "an unnamed method")
    with pytest.raises(BaseModelError, match=f"quantised by {method}, expected plain ones or one of fp8, mxfp4"):
        load_base_model(str(path), device="cpu", dtype="float32")


def with_biases(tensors: dict[str, Tensor]) -> None:
    weight = "model.layers.0.self_attn.q_proj.weight"
    tensors[weight.replace("weight", "bias")] = torch.ones(len(tensors[weight]))


def with_scales_of_experts(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.experts.0.up_proj.weight_scale"] = torch.ones(1)


def without_prefix(tensors: dict[str, Tensor]) -> None:
    tensors["h.0.attn.c_attn.weight_scale"] = torch.ones(1)


@pytest.mark.parametrize(("architecture", "change"), [("mixtral", with_scales_of_experts), ("gpt2", without_prefix)])
def test_scales_of_weights_under_another_name_are_refused_too(
    tmp_path: Path, architecture: str, change: Callable[[dict[str, Tensor]], None]
) -> None:
    path = saved(tmp_path / "tiny", architecture)
    rewritten(path, change)
    with pytest.raises(BaseModelError, match=r"has no place for .*_scale, expected none"):
        load_base_model(str(path), device="cpu", dtype="float32")


def test_buffers_that_older_checkpoints_hold_may_be_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny", "gpt2")
    rewritten(path, lambda tensors: tensors.update({"h.0.attn.bias": torch.ones(1, 1, 8, 8)}))
    load_base_model(str(path), device="cpu", dtype="float32")


@pytest.mark.parametrize("change", [to_fp8("weight_scale"), with_biases], ids=["scales", "biases"])
def test_weights_that_would_be_left_out_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    path = saved(tmp_path / "tiny")
    rewritten(path, change)
    with pytest.raises(BaseModelError, match=r"has no place for .*, such as model\.layers\.0\..*, expected none"):
        load_base_model(str(path), device="cpu", dtype="float32")


def test_weights_of_a_module_that_the_model_lacks_may_be_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny")
    rewritten(path, lambda tensors: tensors.update({"model.mtp.0.proj.weight": torch.ones(2, 2)}))
    load_base_model(str(path), device="cpu", dtype="float32")


def tiny_llava() -> PreTrainedModel:
    """A small random model that reads images too."""
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16}
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "projection_dim": 16}
    few = {"num_hidden_layers": 1, "num_attention_heads": 2}
    images = {"image_size": 32, "patch_size": 16}
    config = LlavaConfig(text_config=text | few, vision_config=vision | few | images, image_token_index=63)
    return AutoModelForImageTextToText.from_config(config)


def test_the_language_model_of_one_that_reads_images_too_is_a_base(tmp_path: Path) -> None:
    path = saved_model(tmp_path / "tiny", tiny_llava())
    check_packing(load_base_model(str(path), device="cpu", dtype="float32"))


def test_a_model_that_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    path = saved_model(tmp_path / "tiny", T5ForConditionalGeneration(config))
    with pytest.raises(
        BaseModelError, match="of type 't5', which is no causal language model and no encoder, expected one of these$"
    ):
        load_base_model(str(path), device="cpu", dtype="float32")
