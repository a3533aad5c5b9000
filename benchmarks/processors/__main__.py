"""Measure what the processor changes: `python -m benchmarks.processors` writes a result file for this machine.

The first machine's answers, each ticket alone, are kept as the reference that every machine is compared with.
"""

import json
import re
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.processors.answers import threshold_of
from benchmarks.processors.table import REFERENCE, RESULTS
from benchmarks.processors.variants import VARIANTS, Variant
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.training.provenance import revision

# Of the tickets, every sixth; the reference has all.
STEP = 6


def main() -> None:
    """Measure every variant that is not idle on this machine; a run that was interrupted goes on where it was."""
    made = about("python -m benchmarks.processors")
    RESULTS.mkdir(parents=True, exist_ok=True)
    output = RESULTS / f"{re.sub('[^a-z0-9]+', '-', str(made['machine']['processor']).lower()).strip('-')}.json"
    rows = json.loads(output.read_text())["rows"] if output.exists() else []
    rows = [
        row for row in rows if row["threshold"] == threshold_of(row["dtype"])
    ]  # of the demo as it is calibrated now
    done = {(row["variant"], row["dtype"]) for row in rows}
    for variant in VARIANTS:
        for dtype in variant.dtypes if variant.idle is None else ():
            if (variant.name, dtype) in done:
                continue
            new = {"probabilities": {}, "certainty": {}, **made}
            kept = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else new
            if dtype not in kept["probabilities"]:
                found = _ask(VARIANTS[0], dtype, 1)
                kept["probabilities"][dtype], kept["certainty"][dtype] = found["alone"], found["alone_certainty"]
                REFERENCE.write_text(json.dumps(kept) + "\n")
            reference = {name: torch.tensor(kept[name][dtype])[::STEP] for name in ("probabilities", "certainty")}
            rows.append(_row(variant, dtype, _ask(variant, dtype, STEP), reference) | {"revision": revision()})
            write(output, {"rows": rows, **made})
            sys.stderr.write(f"{rows[-1]}\n")


def _ask(variant: Variant, dtype: str, step: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.processors.answers", str(step), dtype]
    done = subprocess.run(command, env=variant.variables(), cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)[dtype]
    return found


def _row(variant: Variant, dtype: str, found: dict[str, Any], reference: dict[str, Tensor]) -> dict[str, Any]:
    """How far answers move, by their batch and from the reference; how many decisions change, and how near."""
    alone, batched = torch.tensor(found["alone"]), torch.tensor(found["batched"])
    threshold = threshold_of(dtype)
    certainty = torch.stack([torch.tensor(found[f"{way}_certainty"]) for way in ("alone", "batched")])
    changed = ((certainty >= threshold) != (reference["certainty"] >= threshold)).any(0)
    nearness = (reference["certainty"] - threshold).abs()[changed]
    return {
        "variant": variant.name,
        "dtype": dtype,
        "n_tickets": len(alone),
        "moved_by_batch": (batched - alone).abs().max().item(),
        "moved_from_reference": torch.stack([alone, batched]).sub(reference["probabilities"]).abs().max().item(),
        "certainty_moved": certainty.sub(reference["certainty"]).abs().max().item(),
        "threshold": threshold,
        "decisions_changed": int(changed.sum()),
        "furthest_changed": nearness.max().item() if len(nearness) else 0.0,
        "runs_whole_because": found["runs_whole_because"],
        "seconds": found["seconds"],
    }


if __name__ == "__main__":
    main()
