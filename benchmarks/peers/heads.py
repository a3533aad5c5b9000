"""The decision head as `blora train` trains it, alone and above a LoRA, and the parts of its inputs as methods."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.figures import Scored
from benchmarks.peers.posteriors import other_posteriors
from benchmarks.peers.reading import EMPTY_LORA, SAMPLING, SEEDS, ReadSet, Rows, kept_in
from blora.base_model import BaseModel
from blora.config import PosteriorConfig
from blora.posterior.inject import linear_targets, parse_layers, select_modules
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.config import N_SAMPLES_HEAD, TrainConfig
from blora.training.head.features import read_features
from blora.training.head.train import TrainedHead, fit_parts, train_below
from blora.training.lora.checkpoints import STATE_FILE, claimed
from blora.training.trials import trial_of

__all__ = ["AboveLora", "above_lora", "drawn", "heads", "heads_above_lora"]

# Labels beyond which other posteriors, which are fitted and recalibrated many times, are left out.
MOST_LABELS = 20
# Training of a LoRA below the head.
EPOCHS, BATCH_SIZE = 3.0, 16
# What the parts of a head's inputs are called where choices come with the question.
ALONE = {"counts": "base model's log-probabilities", "states": "regression on frozen states"}


def heads(read: ReadSet, *, with_others: bool = True) -> Iterator[Scored]:
    """Yield the posterior mean of a trained head, and its draws for each of `SEEDS`; other posteriors with few labels.

    For choices that come with a question, the heads that are fitted on a part of the inputs alone come first: the base
    model's own log-probabilities, and a regression on states.

    Args:
        read: the set.
        with_others: whether other posteriors are wanted.
    """
    began = time.perf_counter()
    train, validation = read.train, read.validation
    trained = fit_parts(
        read.config, train.features, train.rows, validation.features, validation.rows, SAMPLING, EMPTY_LORA
    )
    seconds = read.seconds + time.perf_counter() - began
    if train.rows[0].row.readout == "pointer":
        for part, method in ALONE.items():
            fitted = trained.fitted[part]
            yield read.under(method, fitted.head.mean(EMPTY_LORA.mean()), fitted.trial, seconds)
    yield _mean("head", read, trained, seconds)
    for seed in SEEDS:
        yield drawn("head", read, trained, seconds, seed)
    if with_others and trained.posterior.head.n_outputs <= MOST_LABELS:
        yield from other_posteriors(read, trained, seconds)


def heads_above_lora(
    base: BaseModel, read: ReadSet, kept: Callable[[int], Path | None], trained: Sequence[int] = SEEDS
) -> Iterator[Scored]:
    """Yield the same of heads above a LoRA in the upper two thirds of the layers.

    Args:
        base: the base model; LoRA layers are injected into it.
        read: the set, as read under the frozen model.
        kept: for a seed the file that keeps its training for further runs, with the epochs of an unfinished one in a
            folder of the same name; None to keep nothing.
        trained: seeds that each train a LoRA of their own; the draws of all `SEEDS` are shared out among these LoRAs.
    """
    runs = [above_lora(base, read, seed, kept(seed)) for seed in trained]
    name = "head above a LoRA"
    for seed, run in zip(trained, runs, strict=True):
        yield replace(_mean(name, run.read, run.trained, run.seconds), seed=seed)
    for seed, run in zip(SEEDS, cycle(runs), strict=False):
        yield drawn(name, run.read, run.trained, run.seconds, seed)


class AboveLora(NamedTuple):
    """A head above a LoRA, and a set as read above it.

    Attributes:
        trained: the head.
        read: the set; its training rows are still those of the frozen model.
        seconds: time of the training, in seconds, with the reading of training and validation rows.
    """

    trained: TrainedHead
    read: ReadSet
    seconds: float


def above_lora(base: BaseModel, read: ReadSet, seed: int, kept: Path | None) -> AboveLora:
    """Return the head above a LoRA that is trained with a seed; arguments as for `heads_above_lora`."""
    return kept_in(kept, partial(_train_above, base, read, seed, kept))


def _train_above(base: BaseModel, read: ReadSet, seed: int, kept: Path | None) -> AboveLora:
    """Train a LoRA with a seed, from the last kept epoch on, and the head above it, and read the set again."""
    began = time.perf_counter()
    train, validation = read.train, read.validation
    sampling = replace(SAMPLING, seed=seed)
    frozen = fit_parts(
        read.config, train.features, train.rows, validation.features, validation.rows, sampling, EMPTY_LORA, alone=False
    )
    n_layers = base.model.config.get_text_config().num_hidden_layers
    layers = parse_layers(f"last:{n_layers - n_layers // 3}", n_layers)
    modules = select_modules(base.model, linear_targets(base.model), layers)
    lora = Posterior(modules, PosteriorConfig(method="lora"), seed)
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = kept.with_suffix("") if kept is not None else Path(temporary) / "run"
        run = {"base": base.ref.fingerprint, "dtype": base.dtype_name, "epochs": EPOCHS, "batch_size": BATCH_SIZE}
        with claimed(work_dir, run, resume=True) as checkpoint:
            earlier = _seconds_of(checkpoint)
            training = TrainConfig(work_dir=work_dir, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=seed)
            trained = train_below(base, frozen, lora, train.rows, validation.rows, sampling, training, checkpoint, ())
    seconds = read.seconds + earlier + time.perf_counter() - began

    def again(part: Rows) -> Rows:
        below = lora.mean().to(base.device)
        return Rows(part.rows, read_features(base.model, [*part.rows], read.config, below, "reading above the LoRA"))

    foreign, proof = (again(part) if part is not None else None for part in (read.foreign, read.proof))
    under = read._replace(validation=again(validation), test=again(read.test), foreign=foreign, proof=proof)
    return AboveLora(trained, under, seconds)


def _seconds_of(checkpoint: Path | None) -> float:
    """Return the seconds of training that a checkpoint holds, none without one."""
    if checkpoint is None:
        return 0.0
    logged = json.loads((checkpoint / STATE_FILE).read_text())["log_history"]
    return max(entry.get("training_seconds", 0.0) for entry in logged)


def _mean(name: str, read: ReadSet, trained: TrainedHead, seconds: float) -> Scored:
    """Return a head's posterior mean, recalibrated on the validation rows by itself."""
    mean = trained.posterior.mean()
    trial = trial_of(0.0, read.validation.under(mean), read.validation.rows)
    return read.under(f"{name}, posterior mean", mean, trial, seconds)


def drawn(name: str, read: ReadSet, trained: TrainedHead, seconds: float, seed: int) -> Scored:
    """Return a head's draws of a seed, recalibrated as the training did for the draws that it is served with."""
    distances = None
    if read.foreign is not None:
        distances = read.test.distances(trained.familiarity), read.foreign.distances(trained.familiarity)
    draws = trained.posterior.sample(N_SAMPLES_HEAD, generator_of(seed))
    found = read.under(f"{name}, {N_SAMPLES_HEAD} draws", draws, trained.served, seconds)
    return replace(found, seed=seed, distances=distances)
