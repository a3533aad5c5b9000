"""A study: all runs of one training set, by method and seed, and their means and spreads over the seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from benchmarks.calibration.report.records import (
    AS_TRAINED,
    RECALIBRATED,
    TEMPERATURE,
    EvaluationRecord,
    MethodKey,
    RunRecord,
)

__all__ = [
    "BAYESIAN",
    "LORA",
    "LORA_BEST",
    "OURS",
    "MethodRuns",
    "Spread",
    "Study",
    "shared",
    "spread",
    "studies",
]

BAYESIAN, LORA, LORA_BEST = "bayesian", "lora", "lora_best"
OURS = ("bayesian_top", "bayesian_wide", BAYESIAN)
TREATMENTS = (AS_TRAINED, TEMPERATURE, RECALIBRATED)
# In a table: what one starts from, the baselines, what is proposed; the ensembles, which do not compete, last.
FIRST, LAST = ("base", LORA, LORA_BEST), OURS

Seeds = Mapping[int | None, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over runs, and their sample standard deviation, None for a single one."""

    mean: float
    std: float | None

    def text(self, digits: int = 3) -> str:
        """Return both as in `0.123 ± 0.004`."""
        return f"{self.mean:.{digits}f}" + (f" ± {self.std:.{digits}f}" if self.std is not None else "")


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean and spread of at least one value, else None.

    >>> spread([1.0, 3.0]).text(1)
    '2.0 ± 1.4'
    """
    numbers = list(values)
    if not numbers:
        return None
    return Spread(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None)


@dataclass(frozen=True, slots=True)
class MethodRuns:
    """A method and its runs, one for each seed, in the order of the seeds."""

    method: MethodKey
    runs: tuple[RunRecord, ...]

    @property
    def label(self) -> str:
        """Return the name of the method in tables."""
        return self.method.label

    @property
    def trained(self) -> bool:
        """Return whether any of its runs was trained."""
        return any(run.training is not None for run in self.runs)

    @property
    def seeded(self) -> bool:
        """Return whether its runs pair with those of other methods by seed: trained, and as one model."""
        return self.method.single_model and self.trained

    @property
    def seeds(self) -> list[int | None]:
        """Return the seeds of its runs."""
        return [run.seed for run in self.runs]

    def evaluations(self, dataset: str, treatment: str) -> dict[int | None, EvaluationRecord]:
        """Return its evaluations on a test set in a treatment by seed, without runs that lack one."""
        found = ((run.seed, run.evaluation(dataset, treatment)) for run in self.runs)
        return {seed: evaluation for seed, evaluation in found if evaluation is not None}

    def values(self, dataset: str, treatment: str, name: str) -> dict[int | None, float]:
        """Return one metric by seed."""
        return {seed: getattr(e, name) for seed, e in self.evaluations(dataset, treatment).items()}

    def training_seconds(self) -> dict[int | None, float]:
        """Return the seconds that its runs trained, by seed."""
        return {run.seed: run.training.seconds for run in self.runs if run.training is not None}


@dataclass(frozen=True, slots=True)
class Study:
    """All runs of one training set.

    Attributes:
        trained_on: the training set.
        entries: methods in the order of tables.
        in_distribution: test sets of the training distribution.
        shifted: test sets of other distributions.
    """

    trained_on: str
    entries: tuple[MethodRuns, ...]
    in_distribution: tuple[str, ...]
    shifted: tuple[str, ...]

    @property
    def runs(self) -> list[RunRecord]:
        """Return the runs of all entries."""
        return [run for entry in self.entries for run in entry.runs]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Return every test set, those in distribution first."""
        return self.in_distribution + self.shifted

    @property
    def treatments(self) -> list[str]:
        """Return the treatments that any run was evaluated in, and the first two in any case."""
        done = {e.treatment for run in self.runs for e in run.evaluations}
        return [treatment for treatment in TREATMENTS if treatment in done or treatment != RECALIBRATED]

    @property
    def seeds(self) -> list[int | None]:
        """Return every training seed of any single model."""
        return sorted({s for entry in self.entries if entry.seeded for s in entry.seeds}, key=_seed_order)

    @property
    def processors(self) -> list[str]:
        """Return the processors that anything was trained on, by name."""
        return sorted({run.processor for run in self.runs if run.training is not None})

    def n_examples(self, dataset: str) -> int:
        """Return the number of questions in a test set."""
        return next(e.n_examples for run in self.runs for e in run.evaluations if e.dataset == dataset)

    def named(self, name: str) -> list[MethodRuns]:
        """Return the entries of a method, of which there are several where it ran under several labels."""
        return [entry for entry in self.entries if entry.method.name == name]

    @property
    def lora(self) -> MethodRuns | None:
        """Return plain LoRA at its last epoch, which everything is compared to."""
        return next(iter(self.named(LORA)), None)

    def missing(self) -> list[str]:
        """Return a sentence for every run or evaluation that other methods have and one lacks."""
        sentences = []
        for entry in self.entries:
            absent = [seed for seed in self.seeds if entry.seeded and seed not in entry.seeds]
            if absent:
                sentences.append(f"{entry.label} has no run of seed {', '.join(map(str, absent))}.")
            for treatment in self.treatments:
                undone = {d: self._undone(entry, d, treatment) for d in self.datasets}
                if not any(entry.evaluations(d, treatment) for d in self.datasets):
                    sentences.append(f"{entry.label} has nothing {treatment}.")
                else:
                    sentences += [f"{who} has no {d} {treatment}." for d, who in undone.items() if who]
        return sentences

    def _undone(self, entry: MethodRuns, dataset: str, treatment: str) -> str:
        """Return the name of the entry that lacks it, or of its seeds that do; empty where none does."""
        done = entry.evaluations(dataset, treatment)
        undone = [str(seed) for seed in entry.seeds if seed not in done]
        if not undone:
            return ""
        return f"{entry.label}, seed {', '.join(undone)}," if entry.seeded else entry.label


def studies(runs: Sequence[RunRecord]) -> list[Study]:
    """Return a study for each training set, by name."""
    return [
        _study(name, [run for run in runs if run.trained_on == name]) for name in sorted({r.trained_on for r in runs})
    ]


def _study(trained_on: str, runs: Sequence[RunRecord]) -> Study:
    by_method: dict[MethodKey, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: _seed_order(run.seed)):
        by_method.setdefault(run.key, []).append(run)
    entries = [MethodRuns(method, tuple(found)) for method, found in by_method.items()]
    shift = {e.dataset: e.shift for run in runs for e in run.evaluations}
    return Study(
        trained_on=trained_on,
        entries=tuple(sorted(entries, key=_order)),
        in_distribution=tuple(sorted(name for name in shift if not shift[name])),
        shifted=tuple(sorted(name for name in shift if shift[name])),
    )


def _order(entry: MethodRuns) -> tuple[bool, int, str]:
    name = entry.method.name
    rank = FIRST.index(name) if name in FIRST else len(FIRST) + (LAST.index(name) + 1 if name in LAST else 0)
    return not entry.method.single_model, rank, entry.label


def _seed_order(seed: int | None) -> int:
    return -1 if seed is None else seed


def shared(ours: Seeds, theirs: Seeds, baseline: MethodRuns) -> list[tuple[float, float]]:
    """Return pairs of our value and the baseline's of the same seed; numbers of different seeds are not compared.

    An untrained model or an ensemble has no seed to share: its mean pairs with every seed of ours.
    """
    if not baseline.seeded:
        mean = spread(theirs.values())
        return [(value, mean.mean) for value in ours.values()] if mean is not None else []
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
