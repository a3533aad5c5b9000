"""What was proved about an adapter: one calibration, and what it holds for.

A calibration holds for exactly what it was made with, its `Binding` and the kind of its `CalibrationRows`, and says
nothing about other draws, another dtype or other contents. Its numbers are not proved again when its file is read: the
digest of `calibration.json` says that they are those `blora calibrate` wrote, and the bounds here keep numbers out with
which a server could not work.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from blora.checks import require
from blora.config import AdapterConfig, ScoringName
from blora.decision.asks import Ask
from blora.decision.conformal import proof_rows_needed
from blora.decision.curves import ReliabilityBin
from blora.decision.histogram import Histogram
from blora.decision.selective import Level, rows_for_proof, rows_needed
from blora.errors import ConfigError
from blora.scores import ScoreName

__all__ = ["CURVE_POINTS", "Binding", "Calibration", "CalibrationRows", "ConformalQuantile", "FormName", "Goal"]

FormName = Literal["prompt", "messages"]

CURVE_POINTS = 100
# Levels, quantiles or bins that a card can show.
MAX_ENTRIES = 100
MAX_ROWS = 10_000_000

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Rows = Annotated[int, Field(ge=0, le=MAX_ROWS)]
Choices = Annotated[int, Field(ge=2, le=MAX_ROWS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a calibration is to prove, fixed before any row is seen.

    Attributes:
        target_risk: the selective error of the default policy.
        delta: the probability with which a proved target may be missed all the same.
        coverage: the probability with which the default prediction sets hold the right choice.
        seed: of the division of the rows into tuning and proof part.
        score: that gets the thresholds; None lets the tuning part choose.
    """

    target_risk: float = 0.05
    delta: float = 0.05
    coverage: float = 0.9
    seed: int = 0
    score: ScoreName | None = None

    def __post_init__(self) -> None:
        require(0 < self.coverage < 1, f"coverage = {self.coverage}", "a number between 0 and 1")
        _ = self.ask  # which refuses a target, a delta or a seed out of range

    @property
    def ask(self) -> Ask:
        """The part of the goal that rows may fail to prove."""
        return Ask(target_risk=self.target_risk, delta=self.delta, seed=self.seed, score=self.score)

    def check_rows(self, n_rows: int) -> None:
        """Make sure that a number of rows can reach the goal at all.

        Raises:
            ConfigError: naming the number of rows needed.
        """
        for name, needed in (
            (f"target_risk {self.target_risk} at delta {self.delta}", rows_needed(self.target_risk, self.delta)),
            (f"coverage {self.coverage}", rows_for_proof(proof_rows_needed(self.coverage))),
        ):
            if n_rows < needed:
                raise ConfigError(
                    f"got {n_rows} rows for {name}, expected at least {needed}: bring more or ask for less"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a calibration holds for; it is compared with what is served, field by field.

    Attributes:
        adapter_digest: of the adapter's contents.
        dtype: of the base model, as in bfloat16.
        n_samples: draws behind each answer.
        seed: of the sample bank that they are.
        scoring: how choices are scored.
        temperature: of the probabilities.
        lapse: the share of guesses that they allow for.
        stop_error: what may be risked by stopping before all draws are seen, None where all always are.
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
        """Return that of an adapter which is served as its config says."""
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
    """The rows that a calibration was made with.

    Attributes:
        source: file name or hub id.
        digest: of the rows as read.
        split: which split it is.
        forms: in which requests ask such questions: as a prompt, as messages, or both.
        fewest_choices: that a row has.
        most_choices: that a row has.
        n_rows: how many rows were used.
        n_tuning: of these, how many chose the scores and the order of the thresholds.
        n_proof: how many proved.
        seed: of the division between the two.
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
        """How many choices the rows have, in words, as in "3" or "2 to 5"."""
        same = self.fewest_choices == self.most_choices
        return str(self.most_choices) if same else f"{self.fewest_choices} to {self.most_choices}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalQuantile:
    """Choices whose probability is at least 1 - quantile form sets of this coverage; None with too few rows."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    coverage: Annotated[float, Field(gt=0, lt=1)]
    quantile: Share | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One entry of `calibration.json`.

    Levels and quantiles were proved on the proof part; each guarantee is one of its own. The bins, the curve and the
    histogram describe all rows.

    Attributes:
        binding: what it holds for.
        rows: what it was made with.
        delta: the probability with which a proved level may be missed all the same: the sum over all asks.
        asks: of these rows and of rows that overlap with them, this calibration's own ask last, at whose delta the
            levels were proved; where none is given, its own alone.
        target_risk: of the level that is the default policy.
        coverage: of the prediction sets in answers.
        levels: by rising target.
        quantiles: by rising coverage.
        reliability: 15 bins of equal width of the confidence.
        curve: (coverage, selective risk) by the default level's score, at most 100 points by rising coverage.
        entropy: of the predictive entropy, in nats: what later questions can be compared with.

    Raises:
        ConfigError: if the default level or the default quantile is missing, without which nothing could be answered.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    binding: Binding
    rows: CalibrationRows
    delta: Annotated[float, Field(gt=0, lt=1)]
    asks: tuple[Ask, ...] = ()
    target_risk: float
    coverage: float
    levels: Annotated[tuple[Level, ...], Field(max_length=MAX_ENTRIES)]
    quantiles: Annotated[tuple[ConformalQuantile, ...], Field(max_length=MAX_ENTRIES)]
    reliability: Annotated[tuple[ReliabilityBin, ...], Field(max_length=MAX_ENTRIES)]
    curve: Annotated[tuple[tuple[Share, Share], ...], Field(max_length=CURVE_POINTS)]
    entropy: Histogram

    def __post_init__(self) -> None:
        if not self.asks:
            own = Ask(target_risk=self.target_risk, delta=self.delta, seed=self.rows.seed)
            object.__setattr__(self, "asks", (own,))
        require(
            any(level.target_risk == self.target_risk for level in self.proved()),
            f"default target_risk = {self.target_risk}",
            "that of a proved level",
        )
        require(
            any(entry.coverage == self.coverage and entry.quantile is not None for entry in self.quantiles),
            f"default coverage = {self.coverage}",
            "that of a quantile",
        )

    def proved(self) -> tuple[Level, ...]:
        """The levels that have a threshold."""
        return tuple(level for level in self.levels if level.threshold is not None)

    def level(self, target_risk: float) -> Level | None:
        """The proved level of a target, if there is one."""
        return next((level for level in self.proved() if abs(level.target_risk - target_risk) < 1e-9), None)

    @property
    def default_level(self) -> Level:
        """The level that is the adapter's own policy."""
        return next(level for level in self.levels if level.target_risk == self.target_risk)

    @property
    def quantile(self) -> float:
        """Of the prediction sets in answers."""
        return next(q.quantile for q in self.quantiles if q.coverage == self.coverage and q.quantile is not None)
