"""An adapter in this process, with methods to answer as the server does, evaluate, calibrate and export."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from blora.adapter import Adapter, attach
from blora.adapter.export import export_draws
from blora.base_model import BaseModel
from blora.client.answers import Prediction
from blora.client.shown import html_table
from blora.config.checks import require
from blora.errors import BloraError
from blora.front_door.answering import Question, answer_all
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.loading import handle_of
from blora.server.prediction.policies import InForce, default_policy
from blora.training.rows.sources import is_row, records

if TYPE_CHECKING:
    from blora.decision.calibration import Calibration
    from blora.decision.selective import ScoreName
    from blora.training.evaluate import Evaluation
    from blora.training.rows.sources import Frame, Rows

__all__ = ["Model"]


class Model:
    """An adapter on its base model, as returned by `blora.load`, `blora.train` and `blora.bayesianize`.

    Args:
        base: the base model, which gets pass-through LoRA layers.
        adapter: an adapter of this base model.
        allow_uncalibrated: whether to answer if the adapter's calibration does not hold.

    Attributes:
        base: the base model.
        adapter: the adapter as read from disk.

    Raises:
        NotCalibratedError: if the adapter's calibration is for another dtype or other contents, unless
            allow_uncalibrated is set.
    """

    def __init__(self, base: BaseModel, adapter: Adapter, *, allow_uncalibrated: bool = False) -> None:
        attach(base, adapter)
        self.base = base
        self.adapter = adapter
        self._allow_uncalibrated = allow_uncalibrated
        self._handle = self._served()

    @property
    def name(self) -> str:
        """The adapter's name in answers."""
        return self.adapter.name

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The fixed label set; None if each question brings its own choices."""
        return self.adapter.config.prompt.choices

    @property
    def calibration(self) -> "Calibration | None":
        """The adapter's calibration for this dtype; None without one."""
        return self._handle.calibration

    @overload
    def predict(  # first, since a str is an iterable of str too
        self, questions: Question, *, choices: Sequence[str] | None = None, policy: Mapping[str, float] | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        questions: "Iterable[Question] | Frame",
        *,
        choices: Sequence[str] | None = None,
        policy: Mapping[str, float] | None = None,
        errors: Literal["raise"] = "raise",
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        questions: "Iterable[Question] | Frame",
        *,
        choices: Sequence[str] | None = None,
        policy: Mapping[str, float] | None = None,
        errors: Literal["return"],
    ) -> list[Prediction | BloraError]: ...

    def predict(
        self,
        questions: "Question | Iterable[Question] | Frame",
        *,
        choices: Sequence[str] | None = None,
        policy: Mapping[str, float] | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Prediction | Sequence[Prediction | BloraError]:
        """Answer one question, or each of several; `answer` is None if the policy withholds it.

        Args:
            questions: one question or several. A question is a text, or a dict with `prompt`, `question` or `messages`
                and optionally `choices`; other fields are ignored. So is a row of a pandas or polars DataFrame.
            choices: choices for questions without any; by default the adapter's fixed ones.
            policy: policy in place of the adapter's own: a `target_risk` of its calibration, or thresholds such as
                `min_confidence`.
            errors: whether to raise the error of a question that cannot be answered, or return it in the list.

        Returns:
            A prediction, of the same type as the server's and its client's; for several questions a list in order.

        Raises:
            ConfigError: if `errors` is neither of the two.
            PromptError: if a question is invalid; `param` names the part at fault.
            NumericalError: if the model returns numbers that are not finite.
        """
        require(errors in ("raise", "return"), f"errors {errors!r}", "raise or return")
        if isinstance(questions, str | Mapping) or is_row(questions):
            [question] = records([questions])
            [outcome] = answer_all(self.base, self._handle, [question], choices=choices, policy=policy)
            if isinstance(outcome, BloraError):
                raise outcome
            return outcome
        outcomes = answer_all(self.base, self._handle, list(records(questions)), choices=choices, policy=policy)
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

        All draws count, also for an adapter whose answers stop early.

        Args:
            rows: as for `blora.train`.
            columns: the rows' names for columns with other names, as for `blora.train`.
            split: split of a hub data set.
            limit: number of rows to use, from the top; None for all.

        Raises:
            DataError: if rows are malformed; the message names each of them.
        """
        from blora.training.evaluate import evaluate_nested
        from blora.training.rows.examples import examples_for
        from blora.training.rows.packed import pack_examples

        config = self.adapter.config
        examples = examples_for(config, rows, split=split, columns=columns, limit=limit)
        packed = pack_examples(examples, self.base, config.prompt)
        draws = self._handle.bank.draws
        counts, familiarity = [draws.n_samples], self.adapter.familiarity
        [found] = evaluate_nested(
            self.base.model, packed, draws, counts, config.sampling, familiarity, examples.choices
        )
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
        max_false_alarms: float = 0.05,
        max_missed: float = 1.0,
        columns: Mapping[str, str] | None = None,
        split: str = "test",
        limit: int | None = None,
    ) -> "Calibration":
        """Prove a threshold on rows that the adapter has not seen, store it, and use it as the adapter's policy.

        Does the same as `blora calibrate`: calibration.json in the adapter's folder gets an entry for this dtype.

        Args:
            rows: as for `blora.train`.
            target_risk: largest P(wrong | answered) of the policy.
            delta: probability, over random samples of rows, that the policy exceeds target_risk nevertheless.
            coverage: smallest P(the right choice is in the prediction set).
            seed: seed of the division into rows that choose thresholds and rows that prove them.
            score: score that gets the threshold; by default the score with the highest expected coverage on the
                choosing rows.
            max_false_alarms: largest share of familiar questions to withhold as unfamiliar; 1 withholds none.
            max_missed: for each choice, largest share of its questions that get another answer; 1 promises nothing.
            columns: the rows' names for columns with other names, as for `blora.train`.
            split: split of a hub data set.
            limit: number of rows to use, each about another text, from the top; None for all.

        Raises:
            AdapterError: if the adapter was loaded from the hub: pull it into a folder of your own first.
            DataError: if rows are malformed, are duplicates, or were used to make the adapter.
            ConfigError: if there are too few rows, or they do not prove the target.
        """
        from blora.decision.calibration import Goal
        from blora.training.calibrate import calibrate_adapter
        from blora.training.rows.examples import examples_for

        goal = Goal(
            target_risk=target_risk,
            delta=delta,
            coverage=coverage,
            seed=seed,
            score=score,
            max_false_alarms=max_false_alarms,
            max_missed=max_missed,
        )
        examples = examples_for(self.adapter.config, rows, split=split, columns=columns)
        calibration = calibrate_adapter(self.adapter, self.base, examples, goal, split=split, limit=limit)
        self._handle = self._served()
        return calibration

    def export(self, output: str | PathLike[str], *, n_samples: int | None = None) -> list[Path]:
        """Write posterior draws as plain LoRA folders, as `blora export` does.

        Args:
            output: a new folder, which gets the subfolders draw-000, draw-001 ...
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
        companion = self.adapter.config.companion
        models = self.base.name if companion is None else f"{self.base.name} with {companion.id}"
        return {
            "adapter": self.name,
            "base model": f"{models} in {self.base.dtype_name} on {self.base.device}",
            "choices": ", ".join(self.choices) if self.choices else "with each question",
            "draws": f"{self._handle.bank.n_samples} draws",
            "policy": _shown(default_policy(self._handle)),
        }

    def _served(self) -> AdapterHandle:
        """Return a handle of the adapter, with its draws and its current calibration."""
        return handle_of(
            self.adapter,
            device=self.base.device,
            dtype=self.base.dtype_name,
            allow_uncalibrated=self._allow_uncalibrated,
        )


def _shown(in_force: InForce | None) -> str:
    """Return a description of a policy."""
    if in_force is None:
        return "no policy: every question is answered"
    limits = [f"{name} {value:.3g}" for name, value in in_force.policy.thresholds().items()]
    proved = f"P(wrong | answered) <= {in_force.target_risk:g} by " if in_force.target_risk is not None else ""
    return proved + " and ".join(limits)
