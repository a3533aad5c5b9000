"""The base model and the sets of a run on peers, and the result file of each set."""

import json
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import DTYPE
from benchmarks.peers.sets import DATA, QUESTIONS, SETS
from blora.base_model import BaseModel, load_base_model
from blora.training.provenance import machine, revision

__all__ = ["begin", "write"]


def begin(folder: Path, name: str | None) -> tuple[BaseModel, tuple[str, ...]]:
    """Make the folder of the results, and return the base model and the sets: one, or all that have their data."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (name,) if name is not None else SETS if DATA.exists() else ("demo", *QUESTIONS)
    return load_base_model("embedded", dtype=DTYPE), names


def write(folder: Path, result: dict[str, Any], base: BaseModel, command: str) -> None:
    """Write a set's result with the base model, the machine, the revision and the command that it is of."""
    result |= {"base_model": base.ref.id, "dtype": base.dtype_name, "machine": machine(base.device)}
    result |= {"revision": revision(), "command": command}
    (folder / f"{result['set']}.json").write_text(json.dumps(result, indent=1) + "\n")
