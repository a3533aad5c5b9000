"""What do a decision head and the cheapest methods get on the same rows?

`python -m benchmarks.peers` trains, on every set: a logistic regression on the words of the texts, one on the frozen
base model's states, one on these after contrast, and the head of `blora train`, whose posterior mean and draws are
listed separately; where labels are few, other posteriors over the same weights; where they are levels, a cumulative
link; on BANKING77, CLINC150 and ARC-Easy also heads above a LoRA, one for each seed. Questions that bring their own
choices have the base model's log-probabilities in place of words and contrast. Validation rows come out of the training
rows where a set has none of its own. Every method is listed as trained and recalibrated on the validation rows. Draws
and LoRAs have seeds; all else is deterministic. `benchmarks.peers.training_free` asks AnyJev about the same sets.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.peers.contrast import contrast
from benchmarks.peers.cumulative import cumulative_link
from benchmarks.peers.figures import DELTA, N_DIVISIONS, Scored, averaged, figures
from benchmarks.peers.heads import heads, heads_above_lora
from benchmarks.peers.reading import ReadSet, kept_in, read_set
from benchmarks.peers.regressions import Parts, on_states, on_words
from benchmarks.peers.results import begin, write
from benchmarks.peers.sets import SETS, TaskSet, load_set
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel
from blora.training.rows.packed import labels_of

RESULTS = ROOT / "benchmarks" / "results" / "peers"


def methods(task: TaskSet, base: BaseModel, read: ReadSet, keep: Path | None) -> Iterator[Scored]:
    """Yield what each method says of the test and the foreign rows of a set; the seeds of each method are adjacent."""
    if task.prompt.readout == "linear":
        yield from regressions(task, read)
    if task.ordered:
        yield from cumulative_link(read)
    yield from heads(read)
    if task.with_lora:
        yield from heads_above_lora(base, read, lambda seed: keep and keep / f"{task.name}-lora-{seed}.pt")


def regressions(task: TaskSet, read: ReadSet) -> Iterator[Scored]:
    """Yield the regressions on words, on states, and on states after contrast."""
    labels = labels_of(read.train.rows), labels_of(read.validation.rows)
    texts = {name: [example.prompt or "" for example in part] for name, part in task.parts().items()}
    yield on_words(Parts(texts, *labels))
    states = {name: getattr(read, name).features.states.numpy() for name in texts}
    for method in (on_states, contrast):
        found = method(Parts(states, *labels))
        yield replace(found, seconds=read.seconds + found.seconds)


def measure(task: TaskSet, base: BaseModel, read: ReadSet, keep: Path | None = None) -> dict[str, Any]:
    """Return every method's figures on a set, as trained and recalibrated.

    Args:
        task: the set.
        base: the base model.
        read: the set's rows.
        keep: folder in which trained LoRAs are kept for further runs, None to keep none.
    """
    labels = labels_of(read.test.rows)
    found = []
    for method, scored in groupby(methods(task, base, read, keep), lambda one: one.method):
        runs = list(scored)
        for treatment in ("as trained", "recalibrated"):
            by_seed = []
            for run in runs:
                probs, foreign, proof = run.probabilities(recalibrated=treatment == "recalibrated")
                proved = (proof, labels_of(read.proof.rows)) if proof is not None and read.proof is not None else None
                by_seed.append(figures(probs, labels, foreign, task.clear, proved, run.distances))
            mean, spread = averaged(by_seed) if len(runs) > 1 else (by_seed[0], None)
            about = {"method": method, "treatment": treatment, "n_draws": len(runs[0].test)}
            recalibration = runs[0].recalibration
            about |= {"temperature": recalibration.temperature, "lapse": recalibration.lapse}
            about |= {"seeds": [run.seed for run in runs] if spread is not None else None}
            found.append(about | mean | {"spread": spread, "training_s": fmean(run.seconds for run in runs)})
    return {
        "set": task.name,
        "n_train": len(task.train),
        "n_validation": len(task.validation),
        "n_test": len(task.test),
        "n_foreign": len(task.foreign),
        "n_proof": len(task.proof),
        "foreign": task.foreign_source,
        "delta": DELTA,
        "n_divisions": N_DIVISIONS,
        "rows": found,
    }


def main() -> None:
    """Measure every set, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo's without data")
    parser.add_argument("--keep", type=Path, help="folder that keeps the states and the LoRAs of each set")
    arguments = parser.parse_args()
    base, names = begin(RESULTS, arguments.set)
    for name in names:
        task, kept = load_set(name), arguments.keep / f"{name}.pt" if arguments.keep is not None else None
        result = measure(task, base, kept_in(kept, partial(read_set, base, task)), arguments.keep)
        write(RESULTS, result, base, f"python -m benchmarks.peers --set {name}")


if __name__ == "__main__":
    main()
