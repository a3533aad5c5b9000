"""The two adapters that are served, trained and calibrated by the commands that a user has."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import run_blora
from benchmarks.result_files import read_lines
from benchmarks.server_process import ROOT

__all__ = ["FORK", "Adapters", "prepare"]

WORK = ROOT / "runs" / "serving"
N_TRAIN, N_VALIDATION, N_SAMPLES = 800, 400, 16
# The same layers are adapted in both; what gets a posterior differs.
LAYERS, FORK = "last:10", "last:2"
EPOCHS, STOP_ERROR, TARGET_RISK = 3, 0.01, 0.25


@dataclass(frozen=True, slots=True)
class Adapters:
    """Adapter directories.

    Attributes:
        late: plain LoRA with a posterior in the top layers alone, calibrated, stops early.
        everywhere: a posterior in every adapted layer.
    """

    late: Path
    everywhere: Path


def prepare(data: Path) -> Adapters:
    """Train and calibrate what runs/serving does not have yet (half an hour on one core), from the last epoch on.

    Args:
        data: the folder of arc_easy_train.jsonl. 800 of its rows train, 400 validate, the others calibrate.
    """
    adapters = Adapters(WORK / "late", WORK / "everywhere")
    known, others = _divide(data / "arc_easy_train.jsonl")
    common = ["train", "--data", str(known), "--train-examples", str(N_TRAIN), "--validation-examples"]
    common += [str(N_VALIDATION), "--layers", LAYERS, "--epochs", str(EPOCHS), "--n-samples", str(N_SAMPLES)]
    common += ["--head", "none", "--resume"]
    if not adapters.late.is_dir():
        late = ["--bayesian-layers", FORK, "--stop-error", str(STOP_ERROR), "--output", str(adapters.late)]
        run_blora(*common, *late)
    if not (adapters.late / "calibration.json").is_file():
        rows = ["--data", str(others), "--split", "train"]
        run_blora("calibrate", str(adapters.late), *rows, "--target-risk", str(TARGET_RISK))
    if not adapters.everywhere.is_dir():
        run_blora(*common, "--output", str(adapters.everywhere))
    return adapters


def _divide(path: Path) -> tuple[Path, Path]:
    """Write the rows for training, and the others whose question is none of theirs, to two files, and return these."""
    rows = read_lines(path)
    known, others = WORK / "known.jsonl", WORK / "others.jsonl"
    first = rows[: N_TRAIN + N_VALIDATION]
    seen = {row["question"] for row in first}
    unseen = [row for row in rows[len(first) :] if row["question"] not in seen]
    WORK.mkdir(parents=True, exist_ok=True)
    for file, part in ((known, first), (others, unseen)):
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
    return known, others
