"""Train, calibrate and ask toy adapters on a device: `python -m tests.processors.commands DEVICE FOLDER`."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from benchmarks.command_line import run_blora
from tests.processors.other_device import NAME
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.training.toys import toy_data, toy_row, write_jsonl

# What is trained: a linear head, a pointer head above a LoRA, and a posterior over a LoRA.
KINDS = {
    "linear": ("--choices", "warm|cold"),
    "pointer": ("--layers", "last:1", "--epochs", "1"),
    "scores": ("--head", "none", "--epochs", "3", "--batch-size", "4", "--learning-rate", "0.02", "--n-samples", "4"),
}

N_PROOF = 100


def main(device: str, folder: Path) -> None:
    """Write `KIND.jsonl`, the answers of each adapter, into a folder."""
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    rows = write_jsonl(folder / "rows.jsonl", toy_data(60))
    proof = write_jsonl(folder / "proof.jsonl", [toy_row(100 + n, n % 2) for n in range(N_PROOF)])
    if device == NAME:  # as accelerate finds a GPU
        PartialState.default_device = property(lambda self: torch.device(NAME, 0))  # type: ignore[assignment]
    common = ["--base-model", str(folder / "tiny"), "--device", device, "--dtype", "float32"]
    for kind, more in KINDS.items():
        adapter, own = str(folder / kind), [*common, *more]
        run_blora("train", "--data", str(rows), "--output", adapter, *own)
        run_blora("calibrate", adapter, "--data", str(proof), "--target-risk", "0.5", *common)
        run_blora("predict", str(proof), str(folder / f"{kind}.jsonl"), "--adapter", adapter, *common)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
