"""What was proved about an adapter: one calibration, and what it holds for.

A calibration holds for exactly what it was made with, its `Binding` and the kind of its `CalibrationRows`, and says
nothing about other draws, another dtype or other contents. It comes from a file that anyone may have written: making
one proves its levels again from the counts behind them, so that numbers which no proof can have are refused.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import ConfigDict

from blora.checks import require
from blora.config import AdapterConfig, ScoringName
from blora.decision.abstention import TOLERANCE
from blora.decision.asks import Ask, check_total, total_delta
from blora.decision.conformal import proof_rows_needed
from blora.decision.curves import ReliabilityBin
from blora.decision.histogram import Histogram, entropy_edges
from blora.decision.metrics import N_BINS
from blora.decision.selective import Level, rows_for_proof, rows_needed
from blora.errors import ConfigError
from blora.scores import SCORES, ScoreName

__all__ = ["CURVE_POINTS", "Binding", "Calibration", "CalibrationRows", "ConformalQuantile", "FormName", "Goal"]

FormName = Literal["prompt", "messages"]

CURVE_POINTS = 100
# What is read is proved again; these keep a file from making that slow.
MAX_LEVELS = 100
MAX_ROWS = 10_000_000

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


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
        """Makes sure that the goal can be reached with so many rows at all.

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
    """What a calibration holds for.

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

    adapter_digest: str
    dtype: str
    n_samples: int
    seed: int
    scoring: ScoringName
    temperature: float
    lapse: float = 0.0
    stop_error: float | None

    def __post_init__(self) -> None:
        _check_digest(self.adapter_digest)
        require(bool(self.dtype), "no dtype", "its name, as in bfloat16")
        require(self.n_samples >= 1, f"n_samples = {self.n_samples}", "at least 1")
        require(self.seed >= 0, f"seed = {self.seed}", "at least 0")
        require(0 < self.temperature < float("inf"), f"temperature = {self.temperature}", "a positive number")
        require(0 <= self.lapse < 1, f"lapse = {self.lapse}", "a share of at least 0 and below 1")
        require(
            self.stop_error is None or 0 < self.stop_error <= 0.5,
            f"stop_error = {self.stop_error}",
            "a number above 0, at most 0.5, or none",
        )

    @classmethod
    def of(cls, config: AdapterConfig, *, adapter_digest: str, dtype: str) -> "Binding":
        """That of an adapter which is served as its config says."""
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
    digest: str
    split: str
    forms: tuple[FormName, ...]
    fewest_choices: int
    most_choices: int
    n_rows: int
    n_tuning: int
    n_proof: int
    seed: int

    def __post_init__(self) -> None:
        _check_digest(self.digest)
        require(len(set(self.forms)) == len(self.forms) > 0, f"forms {self.forms}", "prompt, messages, or both, once")
        require(
            2 <= self.fewest_choices <= self.most_choices,
            f"rows of {self.fewest_choices} to {self.most_choices} choices",
            "at least 2, and no more at least than at most",
        )
        require(4 <= self.n_rows <= MAX_ROWS, f"n_rows = {self.n_rows}", f"4 to {MAX_ROWS}")
        n_tuning = self.n_rows // 4
        require(
            (self.n_tuning, self.n_proof) == (n_tuning, self.n_rows - n_tuning),
            f"{self.n_tuning} tuning and {self.n_proof} proof rows of {self.n_rows}",
            f"a quarter and the rest, {n_tuning} and {self.n_rows - n_tuning}",
        )
        require(0 <= self.seed < 2**63, f"seed = {self.seed} of the division", "0 to 2^63 - 1")

    @property
    def n_choices(self) -> str:
        """How many choices the rows have, in words, as in "3" or "2 to 5"."""
        same = self.fewest_choices == self.most_choices
        return str(self.most_choices) if same else f"{self.fewest_choices} to {self.most_choices}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformalQuantile:
    """Choices whose probability is at least 1 - quantile form sets of this coverage; None with too few rows."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    coverage: float
    quantile: float | None

    def __post_init__(self) -> None:
        require(0 < self.coverage < 1, f"coverage = {self.coverage}", "a number between 0 and 1")
        require(self.quantile is None or 0 <= self.quantile <= 1, f"quantile = {self.quantile}", "0 to 1")


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
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    binding: Binding
    rows: CalibrationRows
    delta: float
    asks: tuple[Ask, ...] = ()
    target_risk: float
    coverage: float
    levels: tuple[Level, ...]
    quantiles: tuple[ConformalQuantile, ...]
    reliability: tuple[ReliabilityBin, ...]
    curve: tuple[tuple[float, float], ...]
    entropy: Histogram

    def __post_init__(self) -> None:
        if not self.asks:
            own = Ask(target_risk=self.target_risk, delta=self.delta, seed=self.rows.seed)
            object.__setattr__(self, "asks", (own,))
        self._check_asks()
        self._check_levels()
        self._check_quantiles()
        self._check_pictures()

    def _check_asks(self) -> None:
        own = self.asks[-1]
        require(
            (own.target_risk, own.seed) == (self.target_risk, self.rows.seed),
            f"a last ask for target_risk {own.target_risk} with seed {own.seed}",
            f"the calibration's own, for {self.target_risk} with seed {self.rows.seed}",
        )
        total = total_delta(self.asks)
        require(abs(self.delta - total) <= TOLERANCE, f"delta = {self.delta}", f"{total:g}, the sum over all asks")
        check_total(self.asks)

    def _check_levels(self) -> None:
        n_samples, rows = self.binding.n_samples, self.rows
        require(len(self.levels) <= MAX_LEVELS, f"{len(self.levels)} levels", f"at most {MAX_LEVELS}")
        _check_order("target_risk", [level.target_risk for level in self.levels])
        for level in self.levels:
            score = SCORES[level.score]
            require(
                n_samples >= score.fewest_draws,
                f"a level for target_risk {level.target_risk} on the {score.title} of one draw",
                "another score, for one draw has none",
            )
            require(
                self.asks[-1].score in (None, level.score),
                f"a level for target_risk {level.target_risk} on {level.score}",
                f"{self.asks[-1].score}, the score that was asked for",
            )
            least, greatest = score.range(rows.most_choices, n_samples)
            level.check(n_proof=rows.n_proof, delta=self.asks[-1].delta, least=least, greatest=greatest)
        require(
            any(level.target_risk == self.target_risk for level in self.proved()),
            f"default target_risk = {self.target_risk}",
            "that of a proved level",
        )

    def _check_quantiles(self) -> None:
        _check_order("coverage", [entry.coverage for entry in self.quantiles])
        for entry in self.quantiles:
            needed = proof_rows_needed(entry.coverage)
            require(
                (entry.quantile is None) == (self.rows.n_proof < needed),
                f"quantile = {entry.quantile} for coverage {entry.coverage} from {self.rows.n_proof} proof rows",
                f"a number from {needed} rows on, and none below",
            )
        numbers = [entry.quantile for entry in self.quantiles if entry.quantile is not None]
        require(numbers == sorted(numbers), f"quantiles {numbers}", "none to fall while the coverage rises")
        require(
            any(entry.coverage == self.coverage and entry.quantile is not None for entry in self.quantiles),
            f"default coverage = {self.coverage}",
            "that of a quantile",
        )

    def _check_pictures(self) -> None:
        bins, n_rows = self.reliability, self.rows.n_rows
        require(len(bins) == N_BINS, f"{len(bins)} reliability bins", str(N_BINS))
        for name, count in (
            ("reliability bins", sum(row.count for row in bins)),
            ("entropy histogram", sum(self.entropy.counts)),
        ):
            require(count == n_rows, f"{name} of {count} rows", f"of all {n_rows}")
        for index, row in enumerate(bins):
            require(
                row.confidence is None or abs(row.confidence - (index + 0.5) / N_BINS) <= 0.5 / N_BINS + TOLERANCE,
                f"reliability bin {index} with confidence {row.confidence}",
                f"{index / N_BINS:.3f} to {(index + 1) / N_BINS:.3f}",
            )
        edges = entropy_edges(self.rows.most_choices)
        require(
            len(self.entropy.edges) == len(edges)
            and all(abs(got - edge) <= TOLERANCE for got, edge in zip(self.entropy.edges, edges, strict=True)),
            f"entropy histogram of {len(self.entropy.counts)} bins up to {self.entropy.edges[-1]}",
            f"{len(edges) - 1} equal ones up to ln {self.rows.most_choices}",
        )
        require(1 <= len(self.curve) <= CURVE_POINTS, f"{len(self.curve)} curve points", f"1 to {CURVE_POINTS}")
        require(
            all(0 < share <= 1 and 0 <= risk <= 1 for share, risk in self.curve),
            "a curve point out of range",
            "shares from 0 to 1",
        )
        require(
            all(low < high for (low, _), (high, _) in pairwise(self.curve)) and self.curve[-1][0] == 1,
            "a curve that does not rise in coverage to 1",
            "one that does",
        )
        error = 1 - sum(row.count * row.accuracy for row in bins if row.accuracy is not None) / n_rows
        require(
            abs(self.curve[-1][1] - error) <= TOLERANCE,
            f"error {self.curve[-1][1]} of all answers",
            f"that of the reliability bins, {error:.6f}",
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


def _check_digest(digest: str) -> None:
    require(bool(_DIGEST.fullmatch(digest)), f"digest {digest!r}", "sha256:<64 hex>")


def _check_order(name: str, values: list[float]) -> None:
    require(values == sorted(set(values)), f"{name} of {values}", "distinct ones in rising order")
