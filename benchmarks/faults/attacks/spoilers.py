"""Ways to spoil an adapter's folder, and an adapter with LoRAs to spoil."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.faults.attacks.target import Target
from benchmarks.server_process import ADAPTER
from blora.adapter import read_config, save_adapter
from blora.base_model import load_base_model
from blora.config import PosteriorConfig, SamplingConfig
from blora.posterior.inject import default_targets, parse_layers, select_modules
from tests.blora.adapters import rewrite_json, sealed, trained

__all__ = [
    "CALIBRATION",
    "CARD",
    "CONFIG",
    "HEAD",
    "POSTERIOR",
    "WEIGHTS",
    "calibration",
    "calibrations",
    "config",
    "deep",
    "field_twice",
    "hard_links",
    "linked",
    "longer",
    "many_files",
    "piped",
    "prompt",
    "small_lora",
    "tensors",
    "threshold",
    "twice",
]

HEAD, POSTERIOR, WEIGHTS = "head.safetensors", "posterior.safetensors", "adapter_model.safetensors"
CONFIG, CALIBRATION, CARD = "bayesian_config.json", "calibration.json", "README.md"


def small_lora(target: Target) -> Path:
    """Return an adapter with random LoRAs and a posterior over them, for the demo's choices; made once a server."""
    folder = target.folder / "lora"
    if not folder.exists():
        base, demo = load_base_model(device="cpu"), read_config(ADAPTER)
        targets, n_layers = default_targets(base.model), base.model.config.num_hidden_layers
        config = replace(
            demo,
            target_modules=targets,
            modules=select_modules(base.model, targets, parse_layers("last:2", n_layers)),
            posterior=PosteriorConfig(rank=4),
            prompt=replace(demo.prompt, readout="scores"),
            sampling=SamplingConfig(n_samples=4),
            head=None,
            familiarity=None,
        )
        save_adapter(folder, trained(config), config, base)
    return folder


def tensors(file: str, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Return a spoiler that changes every tensor of a file."""

    def spoil(folder: Path) -> None:
        changed = {name: change(name, tensor).contiguous() for name, tensor in load_file(folder / file).items()}
        save_file(changed, folder / file, metadata={"format": "pt"})
        _uncalibrate(folder)

    return spoil


def config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a spoiler that changes the adapter's settings."""

    def spoil(folder: Path) -> None:
        rewrite_json(change)(folder / CONFIG)
        _uncalibrate(folder)

    return spoil


def calibrations(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    """Return a spoiler that changes the list of calibrations, with a new digest that does not give the change away."""
    return lambda folder: rewrite_json(sealed(lambda raw: change(raw["calibrations"])))(folder / CALIBRATION)


def calibration(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a spoiler that changes every calibration."""
    return calibrations(lambda entries: [change(entry) for entry in entries])


def threshold(value: float, score: str) -> Callable[[Path], None]:
    """Return a spoiler that sets the threshold of every proved level, on one score."""

    def change(calibration: dict[str, Any]) -> None:
        for level in calibration["levels"]:
            if level["threshold"] is not None:
                level |= {"score": score, "threshold": value}

    return calibration(change)


def linked(file: str, to: str | Path) -> Callable[[Path], None]:
    """Return a spoiler that puts a symbolic link in the place of a file."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(to)

    return spoil


def hard_links(folder: Path) -> None:
    """Put hard links in the place of all files."""
    for file in sorted(folder.iterdir()):
        other = folder.with_name(f"{folder.name}-{file.name}")
        other.unlink(missing_ok=True)
        file.replace(other)
        os.link(other, file)


def piped(folder: Path) -> None:
    """Put a named pipe in the place of the card."""
    (folder / CARD).unlink()
    os.mkfifo(folder / CARD)


def many_files(folder: Path) -> None:
    """Add twelve thousand empty files."""
    for number in range(12_000):
        (folder / f"{number}.txt").touch()


def deep(folder: Path) -> None:
    """Add a pickle below nine hundred nested folders."""
    inner = folder / "/".join(["d"] * 900)
    inner.mkdir(parents=True)
    (inner / "x.pkl").touch()


def twice(folder: Path) -> None:
    """Make the header of the head name one tensor twice."""
    content = (folder / HEAD).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    start = header.index(b'"weight":')
    header = header[:-1] + b"," + header[start : header.index(b"}", start) + 1] + b"}"
    (folder / HEAD).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    _uncalibrate(folder)


def longer(folder: Path) -> None:
    """Append a megabyte to the head."""
    os.truncate(folder / HEAD, (folder / HEAD).stat().st_size + 2**20)
    _uncalibrate(folder)


def field_twice(folder: Path) -> None:
    """Make the config name its policy twice, the second time with a threshold out of range."""
    once, twice = '"policy": null', '"policy": null, "policy": {"min_confidence": 2}'
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace(once, twice))
    _uncalibrate(folder)


def prompt(**fields: Any) -> Callable[[Path], None]:
    """Return a spoiler that changes settings of the prompt."""
    return config(lambda raw: raw["prompt"].update(fields))


def _uncalibrate(folder: Path) -> None:
    """Remove the calibration, which is that of other contents, so that the contents are what is judged."""
    (folder / CALIBRATION).unlink(missing_ok=True)
