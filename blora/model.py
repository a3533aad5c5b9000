"""An adapter in this process: it answers as the server does, and is evaluated, calibrated and exported by methods."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from blora.adapter import Adapter, attach
from blora.answering import Question, answer_all
from blora.base_model import BaseModel
from blora.client.answers import Prediction
from blora.client.shown import html_table
from blora.errors import BloraError
from blora.export import export_draws
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.jobs import handle_of
from blora.server.prediction.policies import InForce, default_policy

if TYPE_CHECKING:
    from blora.decision.calibration import Calibration
    from blora.decision.selective import ScoreName
    from blora.training.evaluate import Evaluation
    from blora.training.sources import Rows

__all__ = ["Model"]


class Model:
    """An adapter on its base model. Made by `blora.load`, `blora.train` and `blora.bayesianize`.

    Args:
        base: the base model, which gets pass-through LoRA layers.
        adapter: one of this base model.
        allow_uncalibrated: whether to answer where the adapter's calibration does not hold.

    Attributes:
        base: the base model.
        adapter: the adapter as it is on disk.

    Raises:
        NotCalibratedError: if the adapter's calibration is for another dtype or other contents, unless allowed.
    """

    def __init__(self, base: BaseModel, adapter: Adapter, *, allow_uncalibrated: bool = False) -> None:
        attach(base, adapter)
        self.base = base
        self.adapter = adapter
        self._allow_uncalibrated = allow_uncalibrated
        self._handle = self._served()

    @property
    def name(self) -> str:
        """What answers call the adapter."""
        return self.adapter.name

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The fixed label set; None where each question brings its choices."""
        return self.adapter.config.prompt.choices

    @property
    def calibration(self) -> "Calibration | None":
        """What is proved about the adapter in this dtype, if anything is."""
        return self._handle.calibration

    @overload
    def predict(  # a text is an iterable of texts too
        self, questions: Question, *, choices: Sequence[str] | None = None, policy: Mapping[str, float] | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        questions: Iterable[Question],
        *,
        choices: Sequence[str] | None = None,
        policy: Mapping[str, float] | None = None,
        errors: Literal["raise"] = "raise",
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        questions: Iterable[Question],
        *,
        choices: Sequence[str] | None = None,
        policy: Mapping[str, float] | None = None,
        errors: Literal["return"],
    ) -> list[Prediction | BloraError]: ...

    def predict(
        self,
        questions: Question | Iterable[Question],
        *,
        choices: Sequence[str] | None = None,
        policy: Mapping[str, float] | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Prediction | Sequence[Prediction | BloraError]:
        """Answer one question, or each of several; `answer` is None where the policy withholds it.

        Args:
            questions: a text, or a dict with `prompt`, `question` or `messages`, and `choices` of its own if need be;
                other fields do not count. Or several of these.
            choices: for questions without any; by default the adapter's fixed ones.
            policy: what decides in place of the adapter's own policy: a `target_risk` of its calibration, or thresholds
                such as `min_confidence`.
            errors: what to do with a question that cannot be answered: raise its error, or return that in its place.

        Returns:
            A prediction, the same as the server's and its client's; for several questions a list in their order.

        Raises:
            PromptError: naming the part of a question that is at fault.
            NumericalError: if the model gives numbers that are not finite.
        """
        if isinstance(questions, str | Mapping):
            [outcome] = answer_all(self.base, self._handle, [questions], choices=choices, policy=policy)
            if isinstance(outcome, BloraError):
                raise outcome
            return outcome
        outcomes = answer_all(self.base, self._handle, list(questions), choices=choices, policy=policy)
        for number, outcome in enumerate(outcomes):
            if errors == "raise" and isinstance(outcome, BloraError):
                outcome.add_note(f"in questions[{number}]")
                raise outcome
        return outcomes

    def evaluate(
        self,
        rows: "Rows",
        *,
        columns: Mapping[str, str] | None = None,
        split: str = "test",
        limit: int | None = None,
    ) -> "Evaluation":
        """Return the metrics of all answers on labelled rows, withheld ones included, as `blora evaluate` does.

        Args:
            rows: as for `blora.train`.
            columns: the names in the rows of columns that are called otherwise.
            split: of a hub data set.
            limit: rows from the top, None for all.

        Raises:
            DataError: naming each malformed row.
        """
        from blora.training.data import read_examples
        from blora.training.evaluate import evaluate_nested
        from blora.training.rows import pack_examples

        prompt, sampling = self.adapter.config.prompt, self.adapter.config.sampling
        examples = read_examples(rows, choices=prompt.choices, split=split, columns=columns, limit=limit)
        packed = pack_examples(examples, self.base, prompt)
        draws = self._handle.bank.draws
        [found] = evaluate_nested(self.base.model, packed, draws, [draws.n_samples], sampling)
        return found

    def calibrate(
        self,
        rows: "Rows",
        *,
        target_risk: float = 0.05,
        delta: float = 0.05,
        coverage: float = 0.9,
        seed: int = 0,
        score: "ScoreName | None" = None,
        columns: Mapping[str, str] | None = None,
        split: str = "test",
        limit: int | None = None,
    ) -> "Calibration":
        """Prove a threshold on rows that the adapter has not seen, keep it beside the adapter, and decide by it.

        The same as `blora calibrate`; calibration.json in the adapter's folder gets an entry for this dtype.

        Args:
            rows: as for `blora.train`.
            target_risk: largest P(wrong | answered) of the policy.
            delta: probability with which that may be missed all the same, over random samples of rows.
            coverage: smallest P(the right choice is in the prediction set).
            seed: of the division into rows that choose thresholds and rows that prove them.
            score: that gets the threshold; by default the one that lets most of the choosing rows be answered.
            columns: the names in the rows of columns that are called otherwise.
            split: of a hub data set.
            limit: rows from the top, None for all.

        Raises:
            DataError: if rows are malformed, come twice, or were used to make the adapter.
            ConfigError: if there are too few rows, or they do not prove the target.
        """
        from blora.decision.calibration import Goal
        from blora.training.calibrate import calibrate_adapter
        from blora.training.data import read_examples

        goal = Goal(target_risk=target_risk, delta=delta, coverage=coverage, seed=seed, score=score)
        fixed = self.adapter.config.prompt.choices
        examples = read_examples(rows, choices=fixed, split=split, columns=columns, limit=limit)
        calibration = calibrate_adapter(self.adapter, self.base, examples, goal, split=split)
        self._handle = self._served()
        return calibration

    def export(self, output: str | PathLike[str], *, n_samples: int | None = None) -> list[Path]:
        """Write posterior draws as plain LoRA folders, as `blora export` does.

        Args:
            output: a new folder, in which draw-000, draw-001 ... are written.
            n_samples: number of draws; the adapter's own by default.

        Raises:
            AdapterError: if the folder exists.
        """
        return export_draws(self.adapter, self.base, Path(output), n_samples)

    def __repr__(self) -> str:
        adapter, base, choices, draws, policy = self._facts().values()
        return f"Model({adapter}: {base}; choices {choices}; {draws}; {policy})"

    def _repr_html_(self) -> str:
        return html_table([(escape(name), escape(value)) for name, value in self._facts().items()])

    def _facts(self) -> dict[str, str]:
        return {
            "adapter": self.name,
            "base model": f"{self.base.name} in {self.base.dtype_name} on {self.base.device}",
            "choices": ", ".join(self.choices) if self.choices else "with each question",
            "draws": f"{self._handle.bank.n_samples} draws",
            "policy": _shown(default_policy(self._handle)),
        }

    def _served(self) -> AdapterHandle:
        """Return the adapter with its draws and with what is proved of it now."""
        return handle_of(
            self.adapter,
            device=self.base.device,
            dtype=self.base.dtype_name,
            allow_uncalibrated=self._allow_uncalibrated,
        )


def _shown(in_force: InForce | None) -> str:
    """Return the policy in words."""
    if in_force is None:
        return "no policy: every question is answered"
    limits = [f"{name} {value:.3g}" for name, value in in_force.policy.thresholds().items() if value is not None]
    proved = f"P(wrong | answered) <= {in_force.target_risk:g} by " if in_force.target_risk is not None else ""
    return proved + " and ".join(limits)
