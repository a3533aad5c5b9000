"""The record of a calibration: proved levels, conformal quantiles, and the binding for which they hold.

A calibration holds only for its `Binding` and for questions like its `CalibrationRows`, and says nothing about other
draws, another dtype or other contents. The proofs are not repeated when the file is read: the digest of
`calibration.json` shows that the file is as `blora calibrate` wrote it, and the field limits here reject numbers that
would break a server.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from torch import Tensor

from blora.config import AdapterConfig, ScoringName
from blora.config.checks import require
from blora.decision.abstention import Policy
from blora.decision.asks import VLLM, Ask
from blora.decision.binomial import trials_without_event
from blora.decision.by_choice import ChoiceCounts
from blora.decision.conformal import proof_rows_needed
from blora.decision.curves import ReliabilityBin
from blora.decision.gate import Gate, rows_behind_gate
from blora.decision.selective import Level, rows_for_proof, rows_needed
from blora.errors import ConfigError
from blora.scores import DRAWN, SCORES, ScoreName

__all__ = ["CURVE_POINTS", "VLLM", "Binding", "Calibration", "CalibrationRows", "ConformalQuantile", "FormName", "Goal"]

FormName = Literal["prompt", "messages"]

CURVE_POINTS = 100
# Limit for levels, quantiles or bins, so that a calibration card stays readable.
MAX_ENTRIES = 100
MAX_ROWS = 10_000_000
# Scores that a goal may name: those that draws determine, and on which policies have thresholds.
PLANNED = tuple(name for name in SCORES if name in DRAWN)

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Rows = Annotated[int, Field(ge=0, le=MAX_ROWS)]
Choices = Annotated[int, Field(ge=2, le=MAX_ROWS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The target of a calibration, fixed before any row is seen.

    Attributes:
        target_risk: largest allowed selective error of the default policy.
        delta: largest probability of proving a target that does not hold.
        coverage: smallest probability that a default prediction set holds the right choice.
        seed: seed of the division of the rows into tuning and proof part.
        score: score for the thresholds; None lets the tuning part choose.
        max_false_alarms: largest share of familiar questions to withhold as unfamiliar, for an adapter with a
            familiarity; 1 withholds none.
        max_missed: for each choice of a fixed list, the largest allowed share of its questions that get another
            answer; 1 promises nothing.
    """

    target_risk: float = 0.05
    delta: float = 0.05
    coverage: float = 0.9
    seed: int = 0
    score: ScoreName | None = None
    max_false_alarms: float = 0.05
    max_missed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("target_risk", "delta", "coverage", "max_false_alarms", "max_missed"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        object.__setattr__(self, "seed", _whole("seed", self.seed))
        require(self.score is None or self.score in PLANNED, f"score = {self.score}", f"one of {', '.join(PLANNED)}")
        require(0 < self.coverage < 1, f"coverage = {self.coverage}", "a number between 0 and 1")
        self.ask_in("float32")  # checks the ranges of its fields

    def ask_in(self, dtype: str) -> Ask:
        """Return the goal as an ask in a dtype, without the coverage, which needs no proof."""
        return Ask(
            target_risk=self.target_risk,
            delta=self.delta,
            seed=self.seed,
            score=self.score,
            max_false_alarms=self.max_false_alarms,
            max_missed=self.max_missed,
            dtype=dtype,
        )

    def check_draws(self, n_samples: int) -> None:
        """Raise an error if a number of draws is too small for the goal's score.

        Raises:
            ConfigError: if the score needs more draws.
        """
        if self.score is not None and n_samples < (fewest := SCORES[self.score].fewest_draws):
            raise ConfigError(
                f"got score {self.score} with n_samples = {n_samples}, expected at least {fewest} for it: use another "
                "score, such as confidence, or an adapter with more draws"
            )

    def check_rows(self, n_rows: int) -> None:
        """Raise an error if a number of rows is too small for the goal, even without wrong answers.

        Raises:
            ConfigError: if there are too few rows; the message names the number needed.
        """
        at_once = f"target_risk {self.target_risk} at delta {self.delta}"
        behind = f"max_false_alarms {self.max_false_alarms} and {at_once} behind that gate"
        for name, needed in (
            (at_once, rows_needed(self.target_risk, self.delta)),
            (behind, rows_behind_gate(self.max_false_alarms, self.target_risk, self.delta)),
            (f"coverage {self.coverage}", rows_for_proof(proof_rows_needed(self.coverage))),
        ):
            if n_rows < needed:
                raise ConfigError(
                    f"got {n_rows} rows for {name}, expected at least {needed}: bring more or ask for less"
                )

    def check_choices(self, choices: Sequence[str], labels: Tensor) -> None:
        """Raise an error if the rows of some choice are too few for `max_missed`, even without a wrong answer.

        Args:
            choices: the choices that all rows have; none if they have different ones.
            labels: (N,) indices of the right choices of the rows that are to prove it.

        Raises:
            ConfigError: if rows have different choices, or a choice has too few; the message names it.
        """
        got = f"max_missed = {self.max_missed} for rows with different choices"
        require(bool(choices), got, "the same in the same order")
        needed = trials_without_event(self.max_missed, self.delta)
        counts = labels.long().bincount(minlength=len(choices))
        place = int(counts.argmin())
        require(
            int(counts[place]) >= needed,
            f"{int(counts[place])} rows of the choice {choices[place]!r} for the proof of max_missed {self.max_missed} "
            f"at delta {self.delta}",
            f"at least {needed} of each choice, about three in four of its rows: bring more or ask for less",
        )


def _number(name: str, value: Any) -> float:
    """Return a number of any library as a float; a bool is no number."""
    require(isinstance(value, Real) and not isinstance(value, bool), f"{name} = {value!r}", "a number")
    return float(value)


def _whole(name: str, value: Any) -> int:
    """Return a whole number of any library as an int; a bool is none, nor is a float."""
    try:
        require(not isinstance(value, bool), f"{name} = {value!r}", "a whole number")
        return operator.index(value)
    except TypeError as exc:
        raise ConfigError(f"got {name} = {value!r}, expected a whole number") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Identity and settings of the adapter for which a calibration holds; a server compares every field.

    Attributes:
        adapter_digest: digest of the adapter's contents.
        dtype: dtype of the base model, such as bfloat16, or `VLLM`.
        n_samples: draws behind each answer.
        seed: seed of the sample bank.
        scoring: scoring of choices.
        temperature: temperature of the probabilities.
        lapse: lapse rate of the probabilities.
        stop_error: error probability of early stopping; None without early stopping.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    adapter_digest: Digest
    dtype: str
    n_samples: int
    seed: int
    scoring: ScoringName
    temperature: float
    lapse: float = 0.0
    stop_error: float | None

    @classmethod
    def of(cls, config: AdapterConfig, *, adapter_digest: str, dtype: str) -> "Binding":
        """Return the binding of an adapter that is served according to its config."""
        sampling = config.sampling
        return cls(
            adapter_digest=adapter_digest,
            dtype=dtype,
            n_samples=sampling.n_samples,
            seed=sampling.seed,
            scoring=config.prompt.scoring,
            temperature=sampling.temperature,
            lapse=sampling.lapse,
            stop_error=sampling.stop_error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRows:
    """Description of the rows behind a calibration.

    Attributes:
        source: file name or hub id.
        digest: digest of the rows as read.
        split: name of the split.
        forms: forms of requests for such questions: prompt, messages, or both.
        fewest_choices: smallest number of choices in a row.
        most_choices: largest number of choices in a row.
        n_rows: number of rows used.
        n_tuning: number of rows in the tuning part, which chose the score and the order of the thresholds.
        n_proof: number of rows in the proof part, which tested the thresholds.
        seed: seed of the division into the two parts.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    source: str
    digest: Digest
    split: str
    forms: Annotated[tuple[FormName, ...], Field(min_length=1, max_length=2)]
    fewest_choices: Choices
    most_choices: Choices
    n_rows: Rows
    n_tuning: Rows
    n_proof: Rows
    seed: Annotated[int, Field(ge=0, lt=2**63)]

    @property
    def n_choices(self) -> str:
        """The rows' number of choices as text, such as "3" or "2 to 5"."""
        same = self.fewest_choices == self.most_choices
        return str(self.most_choices) if same else f"{self.fewest_choices} to {self.most_choices}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalQuantile:
    """A conformal quantile: the choices of probability at least 1 - quantile form sets of the stated coverage.

    The quantile is None if there were too few rows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    coverage: Annotated[float, Field(gt=0, lt=1)]
    quantile: Share | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One entry of `calibration.json`.

    Levels and quantiles come from the proof part, and each is a separate guarantee. The bins and the curve describe all
    rows.

    Attributes:
        binding: the adapter and settings for which the calibration holds.
        rows: the rows behind the calibration.
        delta: largest probability, for each proved level by itself, that it does not hold, summed over all asks.
        asks: asks of these rows and of overlapping rows. The last one is this calibration's own, whose delta the levels
            were proved at.
        target_risk: target of the default level, which is the default policy.
        coverage: coverage of the prediction sets in answers.
        levels: levels by rising target.
        quantiles: quantiles by rising coverage.
        reliability: 15 confidence bins of equal width.
        curve: (coverage, selective risk) by the default level's score, at most 100 points by rising coverage.
        gate: threshold on the familiarity, under which the levels are proved; None without one.
        choices: counts of each choice among the proof part's rows, under the default policy; empty if rows have
            different choices.

    Raises:
        ConfigError: if the default level or the default quantile is missing, since no question could be answered, or
            if two levels have the same target.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    binding: Binding
    rows: CalibrationRows
    delta: Annotated[float, Field(gt=0, lt=1)]
    asks: Annotated[tuple[Ask, ...], Field(min_length=1)]
    target_risk: float
    coverage: float
    levels: Annotated[tuple[Level, ...], Field(max_length=MAX_ENTRIES)]
    quantiles: Annotated[tuple[ConformalQuantile, ...], Field(max_length=MAX_ENTRIES)]
    reliability: Annotated[tuple[ReliabilityBin, ...], Field(max_length=MAX_ENTRIES)]
    curve: Annotated[tuple[tuple[Share, Share], ...], Field(max_length=CURVE_POINTS)]
    gate: Gate | None = None
    choices: tuple[ChoiceCounts, ...] = ()  # as many as the rows have, which may bring their own

    def __post_init__(self) -> None:
        targets = [level.target_risk for level in self.levels]
        require(
            len(set(targets)) == len(targets),
            f"levels for the targets {', '.join(map(str, targets))}",
            "each once",
        )
        require(
            any(level.target_risk == self.target_risk for level in self.proved()),
            f"default target_risk = {self.target_risk}",
            "the target of a proved level",
        )
        require(
            any(entry.coverage == self.coverage and entry.quantile is not None for entry in self.quantiles),
            f"default coverage = {self.coverage}",
            "the coverage of a quantile",
        )

    def proved(self) -> tuple[Level, ...]:
        """Return the proved levels, which have a threshold."""
        return tuple(level for level in self.levels if level.threshold is not None)

    def level(self, target_risk: float) -> Level | None:
        """Return the proved level of a target, or None."""
        return next((level for level in self.proved() if abs(level.target_risk - target_risk) < 1e-9), None)

    @property
    def default_level(self) -> Level:
        """The level of the adapter's default policy."""
        return next(level for level in self.levels if level.target_risk == self.target_risk)

    def policy(self, level: Level, source: Literal["request", "adapter"] = "adapter") -> Policy:
        """Return the policy of a proved level, with the gate that it was proved behind.

        Raises:
            ConfigError: if nothing was proved.
        """
        policy = level.policy(source)
        limits = policy.thresholds() | ({"min_familiarity": self.gate.min_familiarity} if self.gate is not None else {})
        return Policy(**limits, source=source)

    @property
    def max_missed(self) -> float:
        """The proved limit, for each choice, on the share of its questions that get another answer; 1 without one."""
        return self.asks[-1].max_missed

    @property
    def quantile(self) -> float:
        """The conformal quantile for the prediction sets in answers."""
        return next(q.quantile for q in self.quantiles if q.coverage == self.coverage and q.quantile is not None)
