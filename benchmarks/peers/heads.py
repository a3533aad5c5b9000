"""The decision head, trained as `blora train` does, and the parts of its inputs as methods of their own."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from benchmarks.peers.figures import Scored
from benchmarks.peers.sets import TaskSet
from blora.base_model import BaseModel
from blora.config import HeadConfig, PosteriorConfig, SamplingConfig
from blora.decision.temperature import Recalibration
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import Features, HeadDraws
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.config import N_SAMPLES_HEAD
from blora.training.data import Example, ExampleSet
from blora.training.features import read_features
from blora.training.readout import default_head, fit_parts
from blora.training.rows import LabelledRow, pack_examples
from blora.training.tune import Trial, trial_of

__all__ = ["SEEDS", "ReadSet", "Rows", "heads", "read_set"]

# Seeds of the draws; the first one is also the one that the head is trained with.
SEEDS = (0, 1, 2)
# What the parts of a head's inputs are called where choices come with the question.
ALONE = {"counts": "base model's log-probabilities", "states": "regression on frozen states"}


class Rows(NamedTuple):
    """Packed rows and their features, read once for all methods."""

    rows: Sequence[LabelledRow]
    features: Features

    def under(self, draws: HeadDraws) -> Tensor:
        """Return the log-probabilities (S, N, C) of the rows under draws of a head."""
        return head_log_probs(draws, [row.row for row in self.rows], self.features)


class ReadSet(NamedTuple):
    """The rows of a set, with the settings that they were read by.

    Attributes:
        config: settings of the head.
        train: rows to train on.
        validation: rows that choose settings and recalibration.
        test: rows that are scored.
        foreign: foreign rows, None if there are none.
        seconds: time to read the training and the validation rows, in seconds.
    """

    config: HeadConfig
    train: Rows
    validation: Rows
    test: Rows
    foreign: Rows | None
    seconds: float


def read_set(base: BaseModel, task: TaskSet) -> ReadSet:
    """Return the features of all rows of a set."""
    text = base.model.config.get_text_config()
    config = default_head(text.num_hidden_layers, text.hidden_size, linear=task.prompt.readout == "linear")
    lora = _no_lora().mean()

    def read(name: str, examples: tuple[Example, ...]) -> Rows:
        rows = pack_examples(ExampleSet(f"{task.name}, {name}", "", examples), base, task.prompt)
        return Rows(rows, read_features(base.model, rows, config, lora, f"reading {task.name}, {name}"))

    began = time.perf_counter()
    train, validation = read("train", task.train), read("validation", task.validation)
    seconds = time.perf_counter() - began
    foreign = read("foreign", task.foreign) if task.foreign else None
    return ReadSet(config, train, validation, read("test", task.test), foreign, seconds)


def heads(read: ReadSet) -> Iterator[Scored]:
    """Yield the posterior mean of a trained head, and its draws for each of `SEEDS`.

    For choices that come with a question, the heads that are fitted on a part of the inputs alone come first: the base
    model's own log-probabilities, and a regression on states. The mean is recalibrated on the validation rows by
    itself. The draws of every seed have the temperature and the lapse rate of the training, which go with the draws of
    the first seed, and are what an adapter is served with.
    """
    began = time.perf_counter()
    sampling = SamplingConfig(n_samples=N_SAMPLES_HEAD, seed=SEEDS[0])
    train, validation = read.train, read.validation
    trained = fit_parts(
        read.config, train.features, train.rows, validation.features, validation.rows, sampling, _no_lora()
    )
    seconds = read.seconds + time.perf_counter() - began
    if train.rows[0].row.readout == "pointer":
        for part, method in ALONE.items():
            fitted = trained.fitted[part]
            yield _under(method, read, fitted.head.mean(_no_lora().mean()), fitted.trial, seconds)
    mean = trained.posterior.mean()
    trial = trial_of(0.0, read.validation.under(mean), read.validation.rows)
    yield _under("head, posterior mean", read, mean, trial, seconds)
    for seed in SEEDS:
        draws = trained.posterior.sample(N_SAMPLES_HEAD, generator_of(seed))
        found = _under(f"head, {N_SAMPLES_HEAD} draws", read, draws, trained.trial, seconds)
        yield replace(found, seed=seed)


def _under(method: str, read: ReadSet, draws: HeadDraws, trial: Trial, seconds: float) -> Scored:
    foreign = read.foreign.under(draws) if read.foreign is not None else None
    recalibration = Recalibration(trial.temperature, lapse=trial.lapse)  # a head's scores have no length
    return Scored(method, read.test.under(draws), foreign, recalibration, seconds)


def _no_lora() -> Posterior:
    return Posterior({}, PosteriorConfig(method="lora"), seed=0)
