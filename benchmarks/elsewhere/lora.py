"""What do the probabilities of a head above a LoRA say of questions from elsewhere?

`python -m benchmarks.elsewhere.lora` trains a LoRA below the decision head on ARC-Easy, for an hour or two on two
cores, and asks it the rows that `python -m benchmarks.elsewhere` asks the head alone.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.elsewhere.probabilities import probabilities
from benchmarks.elsewhere.reading import read
from benchmarks.elsewhere.sets import Elsewhere, load
from benchmarks.peers.figures import DTYPE
from benchmarks.peers.heads import above_lora
from benchmarks.peers.reading import SAMPLING, SEEDS, ReadSet
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel, load_base_model
from blora.posterior.noise import generator_of

RESULT = ROOT / "benchmarks" / "results" / "elsewhere_lora" / "arc_easy.json"


def measure(base: BaseModel, elsewhere: Elsewhere, rows: ReadSet, kept: Path | None) -> dict[str, Any]:
    """Return the figures of every form of the probabilities of a head above a LoRA.

    Args:
        base: the base model; LoRA layers are injected into it.
        elsewhere: the set.
        rows: its rows as read under the frozen model.
        kept: file that keeps the training for further runs; None to keep nothing.
    """
    run = above_lora(base, rows, SEEDS[0], kept)
    draws = run.trained.posterior.sample(SAMPLING.n_samples, generator_of(SEEDS[0]))
    return probabilities(elsewhere, run.read, run.trained, draws)


def main() -> None:
    """Measure ARC-Easy and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder in which states and the LoRA are kept for further runs")
    folder = parser.parse_args().keep
    base, elsewhere = load_base_model("embedded", dtype=DTYPE), load("arc_easy")
    torch.manual_seed(0)
    states, lora = (folder and folder / name for name in ("arc_easy.pt", f"arc_easy-lora-{SEEDS[0]}.pt"))
    result = measure(base, elsewhere, read(base, elsewhere, states).rows, lora)
    result |= {"base_model": base.ref.id, "dtype": base.dtype_name}
    write(RESULT, result | about("python -m benchmarks.elsewhere.lora", base.device))


if __name__ == "__main__":
    main()
