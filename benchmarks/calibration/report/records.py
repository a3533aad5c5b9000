"""Result files: one run each, read strictly, so that a report never rests on half a number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from blora.errors import ConfigError, DataError

__all__ = [
    "AS_TRAINED",
    "RECALIBRATED",
    "TEMPERATURE",
    "BinRecord",
    "EvaluationRecord",
    "MethodKey",
    "RunRecord",
    "TrainingRecord",
    "read_results",
]

# What was done to the log-probabilities of the choices.
AS_TRAINED, TEMPERATURE, RECALIBRATED = "as trained", "with temperature", "recalibrated"


NonNegative = Annotated[float, Field(ge=0)]
# A mean of float32 numbers may pass 1 by a rounding.
Share = Annotated[float, Field(ge=0, le=1 + 1e-6)]
Name = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="ignore")


class BinRecord(_Strict):
    """One bin of a reliability diagram, whose confidence and accuracy count only where it holds answers."""

    count: Annotated[int, Field(ge=0)]
    confidence: Share | None
    accuracy: Share | None

    @model_validator(mode="after")
    def _filled(self) -> "BinRecord":
        if self.count and (self.confidence is None or self.accuracy is None):
            raise ValueError("a bin with answers should have a confidence and an accuracy")
        return self


class EvaluationRecord(_Strict):
    """The metrics of one method on one test set in one treatment.

    Attributes:
        dataset: the test set.
        digest: of its file.
        shift: whether its questions are of another distribution than the training questions.
        tempered: whether a fitted temperature was applied.
        recalibrated: whether that follows the length of the choices, and guesses are allowed for.
        reliability: bins of the confidence, rising.
        risk_coverage: (coverage, selective risk) pairs, coverage rising.
        auroc_error: of each uncertainty score, for telling wrong answers from right ones.
        auroc_ood: of each, for telling questions of this set from ones of the training distribution.
    """

    dataset: Name
    digest: Name
    shift: bool
    tempered: bool
    recalibrated: bool = False
    n_examples: Annotated[int, Field(ge=1)]
    accuracy: Share
    nll: NonNegative
    ece: Share
    ece_adaptive: Share
    brier: NonNegative
    aurc: Share
    mean_confidence: Share
    mean_mutual_information: float | None
    reliability: Annotated[tuple[BinRecord, ...], Field(min_length=1)]
    risk_coverage: Annotated[tuple[tuple[Share, Share], ...], Field(min_length=1)]
    auroc_error: dict[str, Share | None] | None
    auroc_ood: dict[str, Share | None] | None
    seconds: NonNegative | None

    @property
    def treatment(self) -> str:
        """Return the name of what was done to the log-probabilities."""
        return RECALIBRATED if self.recalibrated else TEMPERATURE if self.tempered else AS_TRAINED


class RecalibrationRecord(_Strict):
    """The numbers that `blora.decision.temperature` fitted."""

    temperature: Annotated[float, Field(gt=0)]
    power: float
    lapse: Share


class TrainingRecord(_Strict):
    """The cost of training."""

    seconds: Annotated[float, Field(gt=0)]
    n_parameters: Annotated[int, Field(ge=0)] | None = None


class MethodKey(_Strict):
    """A method, which runs of several seeds have in common and a table has a row for.

    Attributes:
        name: bayesian, lora, lora_best, base ...
        label: as shown.
        single_model: false for an ensemble, which costs several models and does not compete.
    """

    name: Name
    label: Name
    single_model: bool


class RunRecord(_Strict):
    """One result file.

    Attributes:
        file: its path below the folder of results.
        trained_on: the training set; of an untrained model the set whose validation rows gave its recalibration.
        seed: of the training.
        n_samples: posterior draws, dropout masks or members.
        training: None for a model that was not trained.
    """

    file: str = ""
    method: Name
    label: Name
    single_model: bool
    trained_on: Name
    seed: int | None
    n_samples: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0)] | None
    recalibration: RecalibrationRecord | None = None
    training: TrainingRecord | None
    evaluations: Annotated[tuple[EvaluationRecord, ...], Field(min_length=1)]
    machine: dict[str, Any]
    revision: str
    command: str
    base_model: str
    dtype: str

    @property
    def processor(self) -> str:
        """Return the name of the processor that it ran on."""
        return str(self.machine.get("processor", "unknown"))

    @property
    def key(self) -> MethodKey:
        """Return the method whose run this is."""
        return MethodKey(name=self.method, label=self.label, single_model=self.single_model)

    def evaluation(self, dataset: str, treatment: str) -> EvaluationRecord | None:
        """Return the evaluation on this test set in this treatment, None where there is none."""
        found = (e for e in self.evaluations if (e.dataset, e.treatment) == (dataset, treatment))
        return next(found, None)


def read_results(folder: Path) -> list[RunRecord]:
    """Return every run below the folder, in the order of their paths.

    Raises:
        ConfigError: if the folder does not exist or holds no result.
        DataError: if a file is malformed, twice the same, or does not compare to the others; it is named.
    """
    files = sorted(folder.rglob("*.json"), key=lambda file: file.relative_to(folder).parts)
    if not files:
        raise ConfigError(f"got {folder}, expected a folder with .json result files; run the methods first")
    runs = [_read(file, file.relative_to(folder).as_posix()) for file in files]
    _check_unique(runs)
    _check_comparable(runs)
    return runs


def _read(file: Path, name: str) -> RunRecord:
    try:
        run = RunRecord.model_validate_json(file.read_bytes())
    except ValidationError as exc:
        raise DataError(f"{name}: {_describe(exc)}; correct the file, or move it out of the folder") from exc
    return run.model_copy(update={"file": name})


def _describe(exc: ValidationError) -> str:
    """Return the first fault, by its field, and the number of others."""
    error = exc.errors()[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    more = f" (and {exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
    if error["type"] == "missing":
        return f"got no field {field}, expected one{more}"
    if not field:
        return f"got something that is not a result, expected one JSON object: {error['msg']}{more}"
    message = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"got {field} = {str(error['input'])[:80]}, expected: {message}{more}"


def _check_unique(runs: Sequence[RunRecord]) -> None:
    seen: dict[tuple[object, ...], str] = {}
    for run in runs:
        key = (run.trained_on, run.key, run.seed)
        if first := seen.get(key):
            raise DataError(
                f"{run.file}: got a second run of {run.label}, {run.trained_on}, seed {run.seed} beside {first}, "
                "expected one; give different settings different labels, or move one away"
            )
        seen[key] = run.file
        sets = [(e.dataset, e.treatment) for e in run.evaluations]
        for dataset, treatment in sets:
            if sets.count((dataset, treatment)) > 1:
                raise DataError(
                    f"{run.file}: got several evaluations of dataset {dataset} {treatment}, "
                    "expected one; remove the others"
                )


def _check_comparable(runs: Sequence[RunRecord]) -> None:
    """Raise where one test set has other rows, bins or standing in another run of the same training set."""
    seen: dict[tuple[str, str], tuple[str, EvaluationRecord]] = {}
    for run in runs:
        for evaluation in run.evaluations:
            file, first = seen.setdefault((run.trained_on, evaluation.dataset), (run.file, evaluation))
            for (what, got), expected in zip(_setting(evaluation).items(), _setting(first).values(), strict=True):
                if got != expected:
                    raise DataError(
                        f"{run.file}: got {evaluation.dataset} with {what} = {got}, expected {expected} as in {file}; "
                        "evaluate all methods on the same rows in the same way"
                    )


def _setting(evaluation: EvaluationRecord) -> dict[str, object]:
    """Return the facts that must be the same for numbers to be comparable."""
    return {
        "digest": evaluation.digest,
        "n_examples": evaluation.n_examples,
        "shift": evaluation.shift,
        "bins of reliability": len(evaluation.reliability),
    }
