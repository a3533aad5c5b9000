"""Plain LoRA directories: those of PEFT itself, and those that are not plain."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from blora.adapter.lora import balanced, lora_shape, read_lora
from blora.errors import AdapterError
from blora.posterior.draws import Draws, Factors
from tests.loras import make_lora
from tests.scenarios import adapted_modules, merged, tiny_model


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return make_lora(tmp_path / "lora")


def change(lora: Path, **settings: Any) -> None:
    file = lora / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def saved_by_peft(folder: Path, **settings: Any) -> Path:
    """A LoRA of these settings as PEFT makes it, trained a little, and saves it; what it says is quiet."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings})
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        model = get_peft_model(tiny_model(), config)
        if config.init_lora_weights == "pissa":
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(str(folder / "start"))
            model.peft_config["default"].init_lora_weights = "pissa"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(str(folder))
        if config.init_lora_weights == "pissa":
            model.save_pretrained(
                str(folder / "converted"), path_initial_model_for_weight_conversion=str(folder / "start")
            )
    return folder


def assert_read_as_peft_reads_it(lora: Path) -> None:
    """The base model answers with the factors merged as with PEFT's LoRA loaded."""
    shape = lora_shape(lora)
    draws = Draws(read_lora(lora, shape.modules, shape.rank, shape.alpha), shape.alpha / shape.rank, 1)
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PeftModel.from_pretrained(tiny_model(), str(lora)).eval()(input_ids=ids).logits
        base = tiny_model()(input_ids=ids).logits
        found = merged(tiny_model(), draws, 0)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - base).abs().max() > 0.05


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
        ({"r": "three"}, "r = 'three' .*expected a whole number and a finite positive one"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan .*expected a whole number and a finite positive one"),
        ({"lora_alpha": 0}, "lora_alpha = 0 in"),
        ({"r": 4}, "with rank 4"),
        ({"peft_type": "LOHA"}, "got peft_type = 'LOHA' .* expected 'LORA'"),
        ({"init_lora_weights": "corda"}, "init_lora_weights = 'corda' .* one of True, False"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights = 'loftq'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights = 'lora_ga'"),
        ({"init_lora_weights": "eva"}, "init_lora_weights = 'eva'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
        ({"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"use_qalora": True}, "use_qalora"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"of_next_year": 3}, "of_next_year = 3 in .*, a setting that this version of PEFT does not have"),
    ],
)
def test_a_lora_that_is_not_plain_is_refused(lora: Path, settings: dict[str, Any], message: str) -> None:
    change(lora, **settings)
    with pytest.raises(AdapterError, match=message):
        lora_shape(lora)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"lora_bias": True},
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"v_proj": 2}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_peft_saved_with_another_update_or_another_base_is_refused(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    lora = saved_by_peft(tmp_path / "lora", **settings)
    with pytest.raises(AdapterError, match=rf"got {next(iter(settings))} = .*(start from a plain LoRA)"):
        lora_shape(lora)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"lora_dropout": 0.1, "task_type": "CAUSAL_LM", "revision": "abc"},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    ],
    ids=str,
)
def test_harmless_settings_are_taken_and_mean_what_they_mean_to_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    assert_read_as_peft_reads_it(saved_by_peft(tmp_path / "lora", **settings))


def test_a_pissa_that_peft_converted_is_a_plain_lora(tmp_path: Path) -> None:
    assert_read_as_peft_reads_it(saved_by_peft(tmp_path / "lora", init_lora_weights="pissa") / "converted")


def test_settings_of_other_versions_of_peft_that_are_off_are_taken(lora: Path) -> None:
    change(lora, of_next_year=None, of_last_year=False, another={}, loftq_config=None, use_dora=None)
    assert lora_shape(lora).rank == 3


def test_other_tensors_and_other_files_are_refused(lora: Path, tmp_path: Path) -> None:
    tensors = load_file(lora / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2)}, lora / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"lm_head\.weight"):
        lora_shape(lora)
    save_file({}, lora / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"got .*lora, which holds no factors"):
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


@pytest.mark.parametrize(("d_out", "d_in"), [(4, 16), (16, 4), (3, 5), (8, 8), (1, 1)])
def test_balancing_a_rank_above_the_size_of_the_module_keeps_shapes_and_update(d_out: int, d_in: int) -> None:
    generator = torch.Generator().manual_seed(2)
    A, B = (torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in ((8, d_in), (d_out, 8)))
    found = balanced(Factors(A, B))
    assert found.A.shape == (2, 8, d_in)
    assert found.B.shape == (2, d_out, 8)
    torch.testing.assert_close(found.B @ found.A, B @ A)
    torch.testing.assert_close(found.A @ found.A.mT, found.B.mT @ found.B, rtol=1e-9, atol=1e-9)
