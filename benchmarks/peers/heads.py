"""The decision head as `blora train` trains it, alone and above a LoRA, and the parts of its inputs as methods."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.figures import Scored
from benchmarks.peers.posteriors import other_posteriors
from benchmarks.peers.reading import NO_LORA, SAMPLING, SEEDS, ReadSet, Rows
from blora.base_model import BaseModel
from blora.config import PosteriorConfig
from blora.posterior.inject import linear_targets, parse_layers, select_modules
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.config import N_SAMPLES_HEAD, TrainConfig
from blora.training.features import read_features
from blora.training.readout import TrainedHead, fit_parts, train_below
from blora.training.tune import trial_of

__all__ = ["heads", "heads_above_lora"]

# Labels beyond which other posteriors, which are fitted and recalibrated many times, are left out.
MOST_LABELS = 20
# Training of a LoRA below the head.
EPOCHS, BATCH_SIZE = 3.0, 16
# What the parts of a head's inputs are called where choices come with the question.
ALONE = {"counts": "base model's log-probabilities", "states": "regression on frozen states"}


def heads(read: ReadSet) -> Iterator[Scored]:
    """Yield the posterior mean of a trained head, and its draws for each of `SEEDS`; other posteriors with few labels.

    For choices that come with a question, the heads that are fitted on a part of the inputs alone come first: the base
    model's own log-probabilities, and a regression on states.
    """
    began = time.perf_counter()
    train, validation = read.train, read.validation
    trained = fit_parts(
        read.config, train.features, train.rows, validation.features, validation.rows, SAMPLING, NO_LORA
    )
    seconds = read.seconds + time.perf_counter() - began
    if train.rows[0].row.readout == "pointer":
        for part, method in ALONE.items():
            fitted = trained.fitted[part]
            yield read.under(method, fitted.head.mean(NO_LORA.mean()), fitted.trial, seconds)
    yield from _mean_and_draws("head", read, trained, seconds)
    if trained.posterior.head.n_outputs <= MOST_LABELS:
        yield from other_posteriors(read, trained, seconds)


def heads_above_lora(base: BaseModel, read: ReadSet) -> Iterator[Scored]:
    """Yield the same of a head above a LoRA in the upper two thirds of the layers, trained once with seed 0."""
    began = time.perf_counter()
    train, validation = read.train, read.validation
    frozen = fit_parts(
        read.config, train.features, train.rows, validation.features, validation.rows, SAMPLING, NO_LORA, ("both",)
    )
    n_layers = base.model.config.get_text_config().num_hidden_layers
    layers = parse_layers(f"last:{n_layers - n_layers // 3}", n_layers)
    modules = select_modules(base.model, linear_targets(base.model), layers)
    lora = Posterior(modules, PosteriorConfig(method="lora"), seed=0)
    with tempfile.TemporaryDirectory() as work_dir:
        training = TrainConfig(work_dir=Path(work_dir), epochs=EPOCHS, batch_size=BATCH_SIZE)
        trained = train_below(base, frozen, lora, train.rows, validation.rows, SAMPLING, training, None, ())
    seconds = read.seconds + time.perf_counter() - began

    def again(part: Rows) -> Rows:
        below = lora.mean().to(base.device)
        return Rows(part.rows, read_features(base.model, [*part.rows], read.config, below, "reading above the LoRA"))

    foreign, proof = (again(part) if part is not None else None for part in (read.foreign, read.proof))
    under = read._replace(validation=again(validation), test=again(read.test), foreign=foreign, proof=proof)
    yield from _mean_and_draws("head above a LoRA", under, trained, seconds)


def _mean_and_draws(name: str, read: ReadSet, trained: TrainedHead, seconds: float) -> Iterator[Scored]:
    """Yield a head's posterior mean and its draws.

    The mean is recalibrated on the validation rows by itself. The draws of every seed have the temperature and the
    lapse rate of the training, which go with the draws of the first seed, and are what an adapter is served with.
    """
    mean = trained.posterior.mean()
    trial = trial_of(0.0, read.validation.under(mean), read.validation.rows)
    yield read.under(f"{name}, posterior mean", mean, trial, seconds)
    distances = None
    if read.foreign is not None:
        distance = trained.familiarity.distance
        distances = distance(read.test.prompts), distance(read.foreign.prompts)
    for seed in SEEDS:
        draws = trained.posterior.sample(N_SAMPLES_HEAD, generator_of(seed))
        found = read.under(f"{name}, {N_SAMPLES_HEAD} draws", draws, trained.trial, seconds)
        yield replace(found, seed=seed, distances=distances)
