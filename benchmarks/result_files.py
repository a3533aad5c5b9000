"""Files of results, each with the machine, the revision and the command that it is of, and files of rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.server_process import ROOT
from blora.training.provenance import machine, revision

__all__ = ["RESULTS", "about", "read_lines", "write"]

RESULTS = ROOT / "benchmarks" / "results"


def about(command: str, device: torch.device | None = None) -> dict[str, Any]:
    """Return the machine, the revision and the command of a result.

    Args:
        command: the command that measures it.
        device: the device of the run; see `machine`.
    """
    return {"machine": machine(device), "revision": revision(), "command": command}


def write(file: Path, result: Mapping[str, Any]) -> None:
    """Write a result, and make its folder if it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one line of JSON for each."""
    with file.open(encoding="utf-8") as lines:  # splitlines would also cut a text at its own line separators
        return [json.loads(line) for line in lines]
