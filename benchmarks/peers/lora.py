"""What does a LoRA below the decision head add?

`python -m benchmarks.peers.lora` trains heads above a LoRA on BANKING77, CLINC150 and ARC-Easy, one for each seed, and
measures them on the rows that `python -m benchmarks.peers` asks the head alone. Each LoRA takes from a quarter of an
hour to two hours on two cores. With `--twice` the template holds a text twice, as in `benchmarks.peers.twice`.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.peers.figures import Scored
from benchmarks.peers.heads import heads_above_lora
from benchmarks.peers.reading import SEEDS, ReadSet, kept_in, read_set
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import load_set
from benchmarks.peers.twice import SETS as SHORT
from benchmarks.peers.twice import named_twice, twice
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel

__all__ = ["methods"]

RESULTS = ROOT / "benchmarks" / "results"
SETS = ("banking77", "clinc150", "arc_easy")


def methods(base: BaseModel, read: ReadSet, seeds: Sequence[int], kept: Path | None) -> Iterator[Scored]:
    """Yield what heads above a LoRA say of the rows of a set; the seeds of each method are adjacent.

    Args:
        base: the base model; LoRA layers are injected into it.
        read: the set, as read under the frozen model.
        seeds: seeds that each train a LoRA.
        kept: file that keeps the states, beside which the LoRAs are kept; None to keep nothing.
    """
    return heads_above_lora(base, read, lambda seed: kept and kept.with_name(f"{kept.stem}-lora-{seed}.pt"), seeds)


def main() -> None:
    """Measure every set of `SETS`, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all")
    parser.add_argument("--twice", action="store_true", help="read each text twice; not for ARC-Easy")
    parser.add_argument("--seeds", type=int, choices=(1, len(SEEDS)), default=len(SEEDS), help="number of LoRAs")
    parser.add_argument(
        "--keep", type=Path, help="folder that keeps the states and the LoRAs of each set, after each epoch"
    )
    arguments = parser.parse_args()
    if arguments.twice and arguments.set == "arc_easy":
        parser.error("got --twice for arc_easy, expected a set of short texts, banking77 or clinc150")
    folder = RESULTS / ("peers_lora_twice" if arguments.twice else "peers_lora")
    base, names = begin(folder, arguments.set)
    for name in [name for name in names if name in SETS and (name in SHORT or not arguments.twice)]:
        task, kept = load_set(name), arguments.keep and arguments.keep / f"{name}{'-twice' * arguments.twice}.pt"
        if arguments.twice:
            task = twice(task)
        read = kept_in(kept, partial(read_set, base, task))
        found = methods(base, read, SEEDS[: arguments.seeds], kept)
        result = measure(task, map(named_twice, found) if arguments.twice else found)
        options = f"--set {name}{' --twice' * arguments.twice} --seeds {arguments.seeds}"
        write(folder, result, base, f"python -m benchmarks.peers.lora {options}")


if __name__ == "__main__":
    main()
