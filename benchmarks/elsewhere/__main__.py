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
from torch import Tensor

from benchmarks.elsewhere.modesty import WAYS, density_aware, temperatures
from benchmarks.elsewhere.reading import Read, read
from benchmarks.elsewhere.sets import SETS, Elsewhere, load
from benchmarks.elsewhere.signals import FALSE_ALARMS, found_at, signals, told_apart
from benchmarks.peers.figures import DTYPE
from benchmarks.peers.reading import EMPTY_LORA, SAMPLING, SEEDS, ReadSet, Rows
from benchmarks.peers.sets import DATA
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.base_model import load_base_model
from blora.decision.guesses import BUDGET, SHARE, modest
from blora.decision.metrics import metrics
from blora.decision.temperature import temper
from blora.posterior.decision_head import HeadDraws
from blora.posterior.noise import generator_of
from blora.training.head.train import TrainedHead, fit_parts
from blora.training.rows.packed import labels_of

RESULTS = ROOT / "benchmarks" / "results" / "elsewhere"


def measure(elsewhere: Elsewhere, read: Read) -> dict[str, Any]:
    """Return the figures of every signal and of every form of the probabilities on a set."""
    rows = read.rows
    train, validation, foreign = rows.train, rows.validation, rows.foreign
    assert foreign is not None  # every set has foreign rows
    trained = fit_parts(
        rows.config, train.features, train.rows, validation.features, validation.rows, SAMPLING, EMPTY_LORA, alone=False
    )
    draws = trained.posterior.sample(SAMPLING.n_samples, generator_of(SEEDS[0]))
    found = signals(read, trained, draws)
    probabilities = Modest(rows, trained, draws)
    of_test, of_foreign = probabilities.of(rows.test), probabilities.of(foreign)
    return {
        "set": elsewhere.task.name,
        "n_train": len(train.rows),
        "n_validation": len(validation.rows),
        "n_test": len(rows.test.rows),
        "n_reference": trained.familiarity.config.n_reference,
        "share_of_guesses": SHARE,
        "n_draws": SAMPLING.n_samples,
        "kind": trained.familiarity.config.kind,
        "false_alarms": FALSE_ALARMS,
        "budget": BUDGET,
        "test": _figures(of_test, labels_of(rows.test.rows), slice(None), labelled=True),
        "foreign": {
            name: {
                "n": elsewhere.sizes[name],
                "signals": {
                    signal: {"auroc": told_apart(test, other[place]), "found": found_at(test, other[place])}
                    for signal, (test, other) in found.items()
                },
                "ways": _figures(of_foreign, labels_of(foreign.rows), place, labelled=elsewhere.labelled),
            }
            for name, place in elsewhere.places.items()
        },
    }


class Modest:
    """The probabilities of a trained head, as served and in modest forms.

    Args:
        rows: the rows of a set.
        trained: the head that was trained on them.
        draws: draws of the head.
    """

    def __init__(self, rows: ReadSet, trained: TrainedHead, draws: HeadDraws) -> None:
        self._trained, self._draws = trained, draws
        validation = rows.validation
        self._fitted = density_aware(
            validation.under(draws), self._distance(validation), labels_of(validation.rows), trained.served.lapse
        )

    def of(self, part: Rows) -> dict[str, Tensor]:
        """Return the predictive means (N, C) of rows by name of the form, one of `WAYS`."""
        log_probs, distances, lapse = part.under(self._draws), self._distance(part), self._trained.served.lapse
        probs = temper(log_probs, self._trained.served.temperature, lapse)
        aware = temper(log_probs, temperatures(distances, *self._fitted), lapse)
        forms = probs, aware, modest(probs, self._trained.familiarity.guesses(distances), ~log_probs.isneginf().all(0))
        return {name: form.mean(0) for name, form in zip(WAYS, forms, strict=True)}

    def _distance(self, part: Rows) -> Tensor:
        return part.distances(self._trained.familiarity)


def _figures(ways: dict[str, Tensor], labels: Tensor, place: slice, *, labelled: bool) -> dict[str, dict[str, float]]:
    """Return the mean confidence under each form, and NLL, ECE and accuracy where rows have a right answer."""
    found = {}
    for name, every in ways.items():
        mean = every[place]
        found[name] = {"confidence": mean.amax(-1).mean().item()}
        if labelled:
            scores = metrics(mean, labels[place])
            found[name] |= {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
    return found


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
