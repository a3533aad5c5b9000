"""Adapters that must not be served: everything `load_adapter` refuses, and that it runs nothing of it."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blora.adapter import load_adapter, save_adapter
from blora.adapter.folder import DIGESTED, FAMILIARITY_FILE
from blora.base_model import BaseModel
from blora.config import FORMAT_VERSION, HeadConfig, ReadoutName
from blora.errors import AdapterError
from blora.posterior.decision_head import HeadPosterior
from tests.blora.adapters import adapter_config, rewrite_json, rewrite_tensors, trained
from tests.heads import head_of
from tests.scenarios import tiny_base


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def on(name: str, change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: change(folder / name)


def config_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return on("bayesian_config.json", rewrite_json(change))


def posterior_with(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    return on("posterior.safetensors", rewrite_tensors(change))


def peft_with(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    return on("adapter_model.safetensors", rewrite_tensors(change))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def poison(tensors: dict[str, Tensor], value: float) -> None:
    tensors[sorted(tensors)[0]].view(-1)[0] = value


def cut(tensors: dict[str, Tensor]) -> None:
    first = sorted(tensors)[0]
    tensors[first] = tensors[first][..., :-1].contiguous()


def overflow(folder: Path) -> None:
    """Every number is finite, but not the mean that they make."""
    tensors = load_file(folder / "posterior.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("inducing_mean"):
            tensor.fill_(3e38)
    save_file(tensors, folder / "posterior.safetensors")


def indefinite(folder: Path) -> None:
    tensors = load_file(folder / "posterior.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("Z_r"):
            tensor.fill_(1e30)
    save_file(tensors, folder / "posterior.safetensors")


def no_modules(folder: Path) -> None:
    config_with(lambda c: c.update(modules={}))(folder)
    for name in ("posterior.safetensors", "adapter_model.safetensors"):
        save_file({}, folder / name)


Q_PROJ = "model.layers.0.self_attn.q_proj"
A_WEIGHT = f"base_model.model.{Q_PROJ}.lora_A.weight"

BAD_ADAPTERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "got adapter .*triage, expected an existing directory"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.touch()), "expected an existing directory"),
    "empty": (
        lambda folder: [f.unlink() for f in folder.iterdir()],
        "got adapter .*triage without bayesian_config.json; expected",
    ),
    "folder for a file": (
        lambda folder: (remove("posterior.safetensors")(folder), (folder / "posterior.safetensors").mkdir()),
        r"posterior.safetensors, which cannot be read \(not a regular file\)",
    ),
    "newer format": (
        config_with(lambda c: c.update(format_version=4)),
        "got format_version 4 in .*, expected 3; upgrade",
    ),
    "an earlier format": (
        config_with(lambda c: c.update(format_version=1)),
        "got format_version 1 in .*, expected 3; train the adapter again",
    ),
    "no format": (config_with(lambda c: c.pop("format_version")), "got format_version None in .*, expected 3"),
    "config not JSON": (
        write("bayesian_config.json", b"{"),
        r"bayesian_config.json, which is not JSON \(.*\); restore",
    ),
    "config not UTF-8": (write("bayesian_config.json", b'{"\xff": 1}'), "bayesian_config.json, which is not JSON"),
    "config a list": (write("bayesian_config.json", b"[]"), "got format_version None"),
    "unknown field": (config_with(lambda c: c.update(extra=1)), "bayesian_config.json: got a bad value at extra "),
    "missing field": (config_with(lambda c: c.pop("prompt")), "got a bad value at prompt .*expected a valid adapter"),
    "unknown posterior field": (config_with(lambda c: c["posterior"].update(x=1)), "got a bad value at posterior.x "),
    "unknown family": (config_with(lambda c: c["posterior"].update(family="x")), "bad value at posterior.family"),
    "rank zero": (config_with(lambda c: c["posterior"].update(rank=0)), "rank = 0, expected 1 to 1024"),
    "three prompts in a template": (config_with(lambda c: c["prompt"].update(template="{prompt}" * 3)), "template"),
    "no draws": (config_with(lambda c: c["sampling"].update(n_samples=0)), "n_samples = 0, expected 1 to 1024"),
    "unknown threshold": (
        config_with(lambda c: c.update(policy={"min_x": 0.5})),
        r"unknown policy thresholds \['min_x'\]",
    ),
    "threshold out of range": (config_with(lambda c: c.update(policy={"min_confidence": 2.0})), "min_confidence = 2.0"),
    "policy without thresholds": (config_with(lambda c: c.update(policy={})), "policy without thresholds"),
    "other base model": (
        config_with(lambda c: c["base_model"].update(fingerprint="sha256:0123", id="owner/other")),
        r"got base model tiny/llama \(sha256:[0-9a-f]+\), expected owner/other \(sha256:0123\)",
    ),
    "module not in the base": (
        config_with(lambda c: c["modules"].update({"model.layers.9.mlp.up_proj": [48, 32]})),
        r"module model.layers.9.mlp.up_proj of shape \(48, 32\), but the base model has no such linear module",
    ),
    "module that is not linear": (
        config_with(lambda c: c["modules"].update({"model.norm": [32, 32]})),
        "got adapted module model.norm .*, but the base model has no such linear module",
    ),
    "module outside the decoder layers": (
        config_with(lambda c: c["modules"].update(lm_head=[128, 32])),
        r"module lm_head of shape \(128, 32\), but the base model has no such linear module in its decoder layers",
    ),
    "module of another shape": (
        config_with(lambda c: c["modules"].update({Q_PROJ: [32, 31]})),
        r"q_proj of shape \(32, 31\), but the base model has \(32, 32\)",
    ),
    "no modules": (no_modules, "modules"),
    "PEFT config not JSON": (write("adapter_config.json", b"{"), "adapter_config.json"),
    "PEFT config of another scale": (
        on("adapter_config.json", rewrite_json(lambda raw: raw.update(lora_alpha=1.0))),
        "lora_alpha",
    ),
    "module left out": (config_with(lambda c: c["modules"].pop(Q_PROJ)), "with tensors that match no module: .*q_proj"),
    "missing tensor": (
        posterior_with(lambda t: t.pop(f"{Q_PROJ}.A.Z_r")),
        f"got posterior.safetensors without {Q_PROJ}.A.Z_r; restore the file",
    ),
    "unknown tensor": (
        posterior_with(lambda t: t.update(x=torch.zeros(2))),
        "got posterior.safetensors with tensors that match no module: x",
    ),
    "wrong shape": (posterior_with(cut), r"got model.* of shape \(.*\) in posterior.safetensors, expected \(.*\)"),
    "NaN": (
        posterior_with(lambda t: poison(t, float("nan"))),
        "in posterior.safetensors with values that are not finite",
    ),
    "infinity": (
        posterior_with(lambda t: poison(t, float("inf"))),
        "in posterior.safetensors with values that are not",
    ),
    "number beyond float32": (
        posterior_with(lambda t: t.update({name: 1e300 * (1 + tensor.double() ** 2) for name, tensor in t.items()})),
        "in posterior.safetensors with values that are not",
    ),
    "mean that overflows": (overflow, "not finite|off the posterior's mean"),
    "covariance that overflows": (indefinite, "not positive definite"),
    "truncated": (on("posterior.safetensors", truncate), "posterior.safetensors, which is not a safetensors file"),
    "empty tensors file": (
        write("posterior.safetensors", b""),
        "posterior.safetensors, which is not a safetensors file",
    ),
    "PEFT tensor missing": (peft_with(lambda t: t.pop(A_WEIGHT)), f"got adapter_model.safetensors without {A_WEIGHT}"),
    "PEFT tensor unknown": (peft_with(lambda t: t.update(x=torch.zeros(2))), "with tensors that match no module: x"),
    "PEFT tensor of another shape": (peft_with(cut), "of shape .* in adapter_model.safetensors, expected"),
    "PEFT tensor NaN": (
        peft_with(lambda t: poison(t, float("nan"))),
        "in adapter_model.safetensors with values that are",
    ),
    "PEFT weights truncated": (on("adapter_model.safetensors", truncate), "which is not a safetensors file"),
    "PEFT weights not the mean": (
        peft_with(lambda t: t[A_WEIGHT].add_(0.01)),
        f"got {A_WEIGHT} in adapter_model.safetensors off the posterior's mean by 0.01; the two files come from",
    ),
    "other prior": (config_with(lambda c: c["posterior"].update(prior_std=0.4)), "off the posterior's mean by"),
}


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_a_corrupted_adapter_is_refused(folder: Path, llama: BaseModel, name: str) -> None:
    spoil, message = BAD_ADAPTERS[name]
    spoil(folder)
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder, llama)


@pytest.fixture
def complete(tmp_path: Path, llama: BaseModel) -> Path:
    """An adapter with a head above a LoRA, which has every file that an adapter without a familiarity may have."""
    folder = save_head(tmp_path / "complete", llama)
    assert isinstance(load_adapter(folder, llama).posterior, HeadPosterior)
    return folder


def save_head(folder: Path, base: BaseModel, readout: ReadoutName = "linear") -> Path:
    linear = readout == "linear"
    sizes: dict[str, Any] = {"n_grams": 8} if linear else {"n_products": (3, 2)}
    settings = HeadConfig(depths=(1, 2), n_states=64, n_directions=4, **sizes)
    config = adapter_config(base, method="lora")
    config = replace(config, head=settings, prompt=replace(config.prompt, readout=readout, choice_end="newline"))
    head = head_of(settings, 2 if linear else 1)
    head = replace(head, basis=head.basis.contiguous())
    save_adapter(folder, HeadPosterior(head, trained(config)), config, base)
    return folder


PRESENT = [name for name in DIGESTED if name != FAMILIARITY_FILE]


@pytest.mark.parametrize("name", PRESENT)
def test_an_adapter_without_one_of_its_files_is_refused(complete: Path, llama: BaseModel, name: str) -> None:
    (complete / name).unlink()
    with pytest.raises(AdapterError, match=f"got adapter .*complete without {name}; expected all of"):
        load_adapter(complete, llama)


def test_an_adapter_without_most_of_its_files_is_told_all_of_them(complete: Path, llama: BaseModel) -> None:
    missing = [name for name in PRESENT if name != "bayesian_config.json"]
    for name in missing:
        (complete / name).unlink()
    with pytest.raises(AdapterError, match=f"without {', '.join(missing)}; expected all of {', '.join(PRESENT)}"):
        load_adapter(complete, llama)


@pytest.mark.parametrize(
    ("readout", "change", "message"),
    [
        ("linear", lambda t: t["scale"][:1].zero_(), "got a head whose scale is not positive"),
        ("linear", lambda t: t["count_scale"][:1].zero_(), "got a head whose count_scale is not positive"),
        (
            "linear",
            lambda t: t.update(grams=t["grams"].long() + 2**32),
            "got grams of torch.int64 in head.safetensors, expected torch.int32",
        ),
        (
            "linear",
            lambda t: t.update(grams=t["grams"].flip(0)),
            "n-grams are in no order, expected a rising",
        ),
        (
            "linear",
            lambda t: t.update(grams=t["grams"].float()),
            "got grams of torch.float32 in head.safetensors, expected torch.int32",
        ),
        ("pointer", lambda t: t["prompt_scale"][:1].neg_(), "got a head whose prompt_scale is not positive"),
        (
            "linear",
            lambda t: t.update(bias=t["bias"].double() * 1e300),
            "bias in head.safetensors with values that are",
        ),
    ],
)
def test_a_head_whose_answers_are_no_numbers_is_refused(
    tmp_path: Path, llama: BaseModel, readout: Any, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    folder = save_head(tmp_path / "head", llama, readout)
    load_adapter(folder, llama)
    rewrite_tensors(change)(folder / "head.safetensors")
    with pytest.raises(AdapterError, match=message):
        load_adapter(folder, llama)


def test_a_format_version_is_written(folder: Path) -> None:
    assert json.loads((folder / "bayesian_config.json").read_text())["format_version"] == FORMAT_VERSION


def test_an_adapter_of_another_architecture_is_refused(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"got base model tiny/gpt2 .*, expected tiny/llama .*load that base model"):
        load_adapter(folder, tiny_base("gpt2"))


# Nothing that can run code is opened


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    target = tmp_path / "exploded"
    content = pickle.dumps(Bomb(target))
    yield content
    assert not target.exists()
    pickle.loads(content)
    assert target.exists()


UNSAFE = ["posterior.pt", "adapter_model.bin", "x.pth", "x.PKL", "x.pickle", "x.ckpt", "x.npy", "optimizer/state.pt"]


@pytest.mark.parametrize("name", UNSAFE)
def test_a_pickle_beside_the_tensors_is_refused_unopened(
    folder: Path, llama: BaseModel, bomb: bytes, name: str
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(bomb)
    with pytest.raises(AdapterError, match=f"got {Path(name).name} in adapter .*, expected safetensors only; remove"):
        load_adapter(folder, llama)


@pytest.mark.parametrize("name", PRESENT)
def test_a_pickle_in_the_place_of_a_file_is_refused_unopened(
    complete: Path, llama: BaseModel, bomb: bytes, name: str
) -> None:
    (complete / name).write_bytes(bomb)
    with pytest.raises(AdapterError, match=name):
        load_adapter(complete, llama)
