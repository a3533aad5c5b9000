"""Which signal notices questions from elsewhere, and what do the probabilities say of them?

`python -m benchmarks.elsewhere` trains the decision head of `blora train` on every set and asks it the set's test rows
and foreign rows. Signals are compared by their AUROC, and by the share of foreign rows beyond the threshold that 5 % of
the test rows exceed. The probabilities of rows that have a right answer are compared without guesses, with a
temperature that rises with the distance, and as served. Everything is fitted on training and validation rows, or on the
rows for the proof where a set has some; foreign rows are counted and nothing else.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.elsewhere.probabilities import probabilities
from benchmarks.elsewhere.reading import Read, read
from benchmarks.elsewhere.sets import SETS, Elsewhere, load
from benchmarks.elsewhere.signals import FALSE_ALARMS, found_at, signals, told_apart
from benchmarks.peers.figures import DTYPE
from benchmarks.peers.reading import EMPTY_LORA, SAMPLING, SEEDS
from benchmarks.peers.sets import DATA
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.base_model import load_base_model
from blora.posterior.noise import generator_of
from blora.training.head.train import fit_parts

RESULTS = ROOT / "benchmarks" / "results" / "elsewhere"


def measure(elsewhere: Elsewhere, read: Read) -> dict[str, Any]:
    """Return the figures of every signal and of every form of the probabilities on a set."""
    rows = read.rows
    train, validation = rows.train, rows.validation
    trained = fit_parts(
        rows.config, train.features, train.rows, validation.features, validation.rows, SAMPLING, EMPTY_LORA, alone=False
    )
    draws = trained.posterior.sample(SAMPLING.n_samples, generator_of(SEEDS[0]))
    result, found = probabilities(elsewhere, rows, trained, draws), signals(read, trained, draws)
    for name, place in elsewhere.places.items():
        result["foreign"][name]["signals"] = {
            signal: {"auroc": told_apart(test, other[place]), "found": found_at(test, other[place])}
            for signal, (test, other) in found.items()
        }
    return result | {"kind": trained.familiarity.config.kind, "false_alarms": FALSE_ALARMS}


def main() -> None:
    """Measure every set, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo without data")
    parser.add_argument("--keep", type=Path, help="folder in which the states of each set are kept for further runs")
    arguments = parser.parse_args()
    names = [arguments.set] if arguments.set else SETS if DATA.exists() else SETS[:1]
    base = load_base_model("embedded", dtype=DTYPE)
    torch.manual_seed(0)
    for name in names:
        elsewhere = load(name)
        kept = arguments.keep / f"{name}.pt" if arguments.keep is not None else None
        result = measure(elsewhere, read(base, elsewhere, kept))
        result |= {"base_model": base.ref.id, "dtype": base.dtype_name}
        result |= about(f"python -m benchmarks.elsewhere --set {name}", base.device)
        write(RESULTS / f"{name}.json", result)


if __name__ == "__main__":
    main()
