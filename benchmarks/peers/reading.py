"""The rows of a set with the states that a head reads, computed once for all methods."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.peers.figures import Scored
from benchmarks.peers.sets import TaskSet
from blora.base_model import BaseModel
from blora.config import HeadConfig, PosteriorConfig, SamplingConfig
from blora.decision.familiarity import Familiarity
from blora.decision.temperature import Recalibration
from blora.inference.reading import head_log_probs, read_rows
from blora.posterior.decision_head import Features, HeadDraws
from blora.posterior.posterior import Posterior
from blora.training.config import N_SAMPLES_HEAD
from blora.training.head.features import read_features
from blora.training.head.train import head_on
from blora.training.rows.examples import ExampleSet
from blora.training.rows.packed import LabelledRow, pack_examples
from blora.training.trials import Trial

__all__ = ["EMPTY_LORA", "SAMPLING", "SEEDS", "ReadSet", "Rows", "cost_ms", "kept_in", "read_set"]

T = TypeVar("T")

# Seeds of the draws; the first one is also the one that the head is trained with.
SEEDS = (0, 1, 2)
SAMPLING = SamplingConfig(n_samples=N_SAMPLES_HEAD, seed=SEEDS[0])
EMPTY_LORA = Posterior({}, PosteriorConfig(method="lora"), seed=0)
# Test rows that are read alone for the cost, after a few that warm up.
N_TIMED, N_WARM = 100, 5


class Rows(NamedTuple):
    """Packed rows and their features, read once for all methods."""

    rows: Sequence[LabelledRow]
    features: Features

    @property
    def prompts(self) -> Tensor:
        """(N, F) mean states of the prompts."""
        assert self.features.prompt is not None  # `read_features` reads them
        return self.features.prompt

    def distances(self, familiarity: Familiarity) -> Tensor:
        """Return the distances (N,) of the rows from those that a familiarity was fitted on."""
        return familiarity.distance(self.prompts, self.features.choices())

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
        proof: rows that prove thresholds, None if there are none.
        seconds: time to read the training and the validation rows, in seconds.
    """

    config: HeadConfig
    train: Rows
    validation: Rows
    test: Rows
    foreign: Rows | None
    proof: Rows | None
    seconds: float

    def under(self, method: str, draws: HeadDraws, trial: Trial, seconds: float) -> Scored:
        """Return what draws of a head say of the test, foreign and proof rows, with a trial's recalibration."""
        foreign, proof = (part.under(draws) if part is not None else None for part in (self.foreign, self.proof))
        recalibration = Recalibration(trial.temperature, lapse=trial.lapse)  # a head's scores have no length
        return Scored(method, self.test.under(draws), foreign, recalibration, seconds, proof=proof)


def kept_in(file: Path | None, read: Callable[[], T]) -> T:
    """Return what a file of an earlier run holds; if there is none, what `read` returns, and keep it there.

    Args:
        file: the file; None for no file.
        read: reads the rows, which takes minutes.
    """
    if file is not None and file.exists():
        kept: T = torch.load(file, weights_only=False)
        return kept
    found = read()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found, file)
    return found


def read_set(base: BaseModel, task: TaskSet) -> ReadSet:
    """Return the features of all rows of a set."""
    config = head_on(base, linear=task.prompt.readout == "linear")
    lora = EMPTY_LORA.mean()

    def read(name: str) -> Rows:
        examples = task.parts()[name]
        rows = pack_examples(ExampleSet(f"{task.name}, {name}", "", examples), base, task.prompt)
        return Rows(rows, read_features(base.model, rows, config, lora, f"reading {task.name}, {name}"))

    began = time.perf_counter()
    train, validation = read("train"), read("validation")
    seconds = time.perf_counter() - began
    foreign, proof = (read(name) if name in task.parts() else None for name in ("foreign", "proof"))
    return ReadSet(config, train, validation, read("test"), foreign, proof, seconds)


@torch.no_grad()
def cost_ms(ways: Sequence[tuple[BaseModel, TaskSet, HeadConfig]]) -> list[float]:
    """Return the median milliseconds that one test row takes alone, for each way to read it.

    Args:
        ways: the base model, the set, whose test rows have the same texts in every way, and the settings of the head.
    """
    packed = [
        pack_examples(ExampleSet(task.name, "", task.test[: N_TIMED + N_WARM]), base, task.prompt)
        for base, task, _ in ways
    ]
    seconds: list[list[float]] = [[] for _ in ways]
    for rows in zip(*packed, strict=True):
        for row, (base, _, config), taken in zip(rows, ways, seconds, strict=True):
            began = time.perf_counter()
            read_rows(base.model, [row.row], config, EMPTY_LORA.mean())
            taken.append(time.perf_counter() - began)
    return [1000 * median(taken[N_WARM:]) for taken in seconds]
