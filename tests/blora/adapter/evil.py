"""Adapter folders made to harm whoever loads them: spoiled copies of a good one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.blora.adapters import rewrite_json

CONFIG = "bayesian_config.json"
PEFT_CONFIG = "adapter_config.json"
CALIBRATION = "calibration.json"
DEEP = "[" * 5000 + "]" * 5000


def in_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return lambda folder: rewrite_json(change)(folder / CONFIG)


def choices(*names: str) -> Callable[[Path], Any]:
    return in_config(lambda raw: raw["prompt"].update(choices=list(names)))


def posterior(**settings: Any) -> Callable[[Path], Any]:
    return in_config(lambda raw: raw["posterior"].update(settings))


def deep_training(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    raw = json.loads(text) | {"training": {"deep": "HERE"}}
    (folder / CONFIG).write_text(json.dumps(raw).replace('"HERE"', DEEP))


def pipe(name: str) -> Callable[[Path], Any]:
    """A FIFO, into which nobody ever writes."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def device(name: str) -> Callable[[Path], Any]:
    """A link to a device that never ends."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")

    return spoil


def written(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def header(name: str, text: str) -> Callable[[Path], Any]:
    """A safetensors file of nothing but a header."""
    return lambda folder: (folder / name).write_bytes(len(text).to_bytes(8, "little") + text.encode())


def many_levels(n: int) -> str:
    return '{"training": ' + "[" * n + "]" * n + "}"


# What is done to a good adapter, and what the refusal says. Rank and inducing weights are as large as the
# config allows, or would take 2 GiB in a model of two layers; the files stay as small as they were.
EVIL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bomb": (
        posterior(inducing_rows=1024, inducing_cols=1024),
        r"of shape \(.*\) in posterior.safetensors, expected",
    ),
    "largest bomb": (
        posterior(rank=1024, inducing_rows=1024, inducing_cols=1024),
        r"of shape \(.*\) in posterior.safetensors, expected",
    ),
    "flow bomb": (
        posterior(family="flow", inducing_rows=1024, inducing_cols=1024),
        "inducing_rows x inducing_cols = 1048576 with family flow, expected at most 1024",
    ),
    "rank bomb": (posterior(rank=1024), r"of shape \(.*\) in posterior.safetensors, expected"),
    "5000 choices": (choices(*map(str, range(5000))), "got 5000 fixed choices, expected 2 to 255"),
    "one choice": (choices("a"), "got 1 fixed choices, expected 2 to 255"),
    "the same choice twice": (choices("a", "a"), "got the fixed choice 'a' twice"),
    "the same choice but for a space": (choices("a", "b", " a\n"), "got the fixed choice 'a' twice"),
    "the same choice in two spellings": (choices("caf\u00e9", "cafe\u0301"), "got the fixed choice 'caf\u00e9' twice"),
    "a blank choice": (choices("a", " \t"), "got a blank fixed choice"),
    "an invisible choice": (choices("a", "\u200b"), "got a blank fixed choice"),
    "a pipe for a calibration": (pipe(CALIBRATION), r"calibration.json, which cannot be read \(not a regular file\)"),
    "a pipe for a config": (pipe(CONFIG), r"bayesian_config.json, which cannot be read \(not a regular file\)"),
    "a pipe for PEFT's config": (pipe(PEFT_CONFIG), r"adapter_config.json, which cannot be read \(not a regular"),
    "a pipe for weights": (pipe("adapter_model.safetensors"), r"which cannot be read \(not a regular file\)"),
    "a pipe for a posterior": (pipe("posterior.safetensors"), r"which cannot be read \(not a regular file\)"),
    "a device for a calibration": (device(CALIBRATION), r"which cannot be read \(not a regular file\)"),
    "a device for a posterior": (device("posterior.safetensors"), r"which cannot be read \(not a regular file\)"),
    "a deep config": (written(CONFIG, DEEP), "bayesian_config.json, which is not JSON"),
    "a deep training record": (deep_training, "bayesian_config.json, which is not JSON"),
    "a training record of 100 levels": (written(CONFIG, many_levels(100)), "more than 32 levels"),
    "a deep PEFT config": (written(PEFT_CONFIG, DEEP), "adapter_config.json, which is not JSON"),
    "a deep calibration": (written(CALIBRATION, DEEP), "calibration.json, which is not JSON"),
    "a huge config": (written(CONFIG, " " * 5_000_000), "of more than 4194304 bytes"),
    "a huge calibration": (written(CALIBRATION, " " * 17_000_000), "of more than 16777216 bytes"),
    "a number that is not finite": (
        in_config(lambda raw: raw.update(training={"validation": {"nll": float("nan")}})),
        "with a number that is not finite",
    ),
    "a header as long as the address space": (
        lambda folder: (folder / "posterior.safetensors").write_bytes(b"\xff" * 7 + b"\x7f"),
        "which is not a safetensors file",
    ),
    "a deep header": (header("posterior.safetensors", DEEP), "which is not a safetensors file"),
    "a header that is a list": (header("posterior.safetensors", "[]"), "a header that is no object"),
    "a tensor larger than its file": (
        header("posterior.safetensors", '{"x": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4]}}'),
        "more numbers or dimensions than fit",
    ),
    "a tensor of a million dimensions": (
        header(
            "posterior.safetensors",
            json.dumps({"x": {"dtype": "F32", "shape": [9] * 1_000_000, "data_offsets": [0, 4]}}),
        ),
        "more numbers or dimensions than fit",
    ),
    "a tensor of eight bits": (
        header("posterior.safetensors", '{"x": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}}'),
        "of dtype F8_E4M3",
    ),
    "Bayesian layers that are not there": (posterior(bayesian_layers=[7]), "posterior.safetensors|Bayesian layers"),
}
