"""The recipe of a training run, and its making from flags and keyword arguments."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from blora.adapter.opening import base_model_of
from blora.base_model import EMBEDDED
from blora.config import MethodName, PosteriorConfig, PromptConfig, SamplingConfig
from blora.config.checks import require
from blora.errors import ConfigError
from blora.scores import SCORES
from blora.training.config import NEW_PROMPT, HeadChoice, TrainConfig
from blora.training.rows.questions import Question, question_given, read_question
from blora.training.rows.sources import Rows

__all__ = ["Recipe", "prompt_of", "recipe_of", "sampling_of"]

T = TypeVar("T")

# Prompt settings that the user chooses; the length power is found on validation rows.
PROMPT = ("choices", "template", "scoring", "normalization", "choice_end")
THRESHOLDS = tuple(score.threshold for score in SCORES.values())
# Settings of the adapter that do not affect its training.
OF_THE_ADAPTER = ("policy", "n_samples", "command")
# Training settings that do not affect the result.
INCIDENTAL = ("work_dir", "resume", "trunk_cache_gib", "report_to")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The complete settings of a training run.

    Attributes:
        data: rows to train on, in any form that `blora.training.rows.sources.read_table` takes.
        validation: rows to validate on, in the same forms; None sets rows of `data` aside, to which a head alone is
            fitted again in the end.
        split: split to train on, of a hub data set.
        validation_split: split to validate on, of a hub data set.
        columns: our column names, mapped to the names in `data` and `validation`.
        train_examples: number of rows to train on, from the top if `validation` is given; None for the default of
            `split_examples`, or for all rows if `validation` is given.
        validation_examples: number of rows to validate on, from the top of `validation` if it is given; None for all
            that are not trained on.
        split_seed: seed of the random order in which `data` is divided.
        base_model: hub id, folder or file, as for `open_base`.
        device: device to train on, as for `load_base_model`.
        dtype: precision of the base model, as for `load_base_model`.
        target_modules: names of the modules to adapt; None for those of `init_from`, otherwise every linear one below a
            head, or the default of the architecture.
        head: decision head. `linear` reads the prompt, for fixed choices; `pointer` reads each choice; `none` leaves
            the answer to the language model's own scores, under a posterior over a LoRA. `auto` takes linear or
            pointer, as the choices are fixed or not, and none if a setting of such a posterior or of these scores is
            given.
        depths: layers whose states the head reads, as text that `parse_depths` reads; None for five, from a third of
            the layers to the last one.
        layers: decoder layers to adapt, as text that `parse_layers` reads, or "none" for a head alone. Below a head
            they get a plain LoRA, which stays only if the validation NLL is clearly lower with it. None adapts those of
            `init_from`, otherwise all if there is no head or a setting of the LoRA is given, and none otherwise.
        method: the method of the posterior if it was chosen, which is a setting of a posterior over a LoRA; None for
            the default.
        posterior: method, family, rank, prior and start of the posterior.
        bayesian_layers: layers that get a posterior, written like `layers`; the other adapted layers get plain LoRA.
            None gives all adapted layers a posterior.
        init_from: directory of a LoRA or adapter whose factors are the initial mean, None to start from zero.
        question: the one question that the adapter answers, whose choices are fixed; it is taken from rows that are
            requests. None to give the question no name, and to take all questions of such rows.
        prompt: how a question becomes text. If it has no choices, rows without choices get the labels that occur.
        default_template: whether the template follows the kind of the data instead of `prompt.template`.
        n_samples: number of the adapter's draws; None for 64 of a head, 16 of a LoRA, or one of a plain LoRA.
        sampling: seed of the adapter's draws, and early stopping, which a head does without.
        policy: the adapter's thresholds, None for none.
        training: how the posterior is fitted.
        command: the command that started the run, for the training record.
    """

    data: Rows
    validation: Rows | None = None
    split: str = "train"
    validation_split: str = "validation"
    columns: Mapping[str, str] | None = None
    train_examples: int | None = None
    validation_examples: int | None = None
    split_seed: int = 0
    base_model: str = EMBEDDED
    device: str = "auto"
    dtype: str = "auto"
    target_modules: tuple[str, ...] | None = None
    head: HeadChoice = "auto"
    depths: str | None = None
    layers: str | None = None
    method: MethodName | None = None
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    bayesian_layers: str | None = None
    init_from: Path | None = None
    question: Question | None = None
    prompt: PromptConfig = NEW_PROMPT
    default_template: bool = True
    n_samples: int | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    policy: dict[str, float] | None = None
    training: TrainConfig
    command: str

    def of_training(self) -> dict[str, Any]:
        """Return what affects the training, but for the rows, as JSON."""
        names = [f.name for f in fields(self) if f.name not in ("data", "validation", *OF_THE_ADAPTER)]
        settings = {name: getattr(self, name) for name in names}
        settings |= {name: asdict(settings[name]) for name in ("posterior", "prompt", "sampling", "training")}
        settings["question"] = asdict(self.question) if self.question is not None else None
        settings["columns"] = dict(self.columns) if self.columns is not None else None
        settings["init_from"] = str(self.init_from) if self.init_from is not None else None
        for name in INCIDENTAL:
            settings["training"].pop(name)
        return settings


_USUAL = {field.name: field.default for field in fields(Recipe)}
# Types of plain settings: what a keyword argument may be, and what an error calls it. A base model may be a path, and a
# device torch's own.
_KINDS: dict[type, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
}
_PLAIN: dict[str, type] = {
    field.name: kind
    for config in (Recipe, PosteriorConfig, TrainConfig, PromptConfig)
    for field in fields(config)
    for kind in _KINDS
    if field.type in (kind, kind | None) and field.name not in ("base_model", "device")
} | {"bank_seed": int, "stop_error": float, **dict.fromkeys(THRESHOLDS, float)}


def recipe_of(data: Rows, output: Path, *, command: str, **settings: Any) -> Recipe:
    """Return the recipe of a training run.

    Args:
        data: the rows to train on.
        output: the adapter directory to write; checkpoints go to OUTPUT.work unless `work_dir` is given.
        command: the command that started the run, for the training record.
        settings: values by flag name of `blora train`, with underscores; None or missing means the default, and for
            base_model that of an init_from that `blora train` made, or else the embedded one.

    Raises:
        ConfigError: if a setting is unknown, of another type, or out of range.
        AdapterError: if the base model of init_from came from a folder or a file, and no base_model is given.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name in _PLAIN.keys() & given.keys():
        accepted, told = _KINDS[_PLAIN[name]]
        fits = isinstance(given[name], accepted) and not isinstance(given[name], bool)
        require(fits, f"{name} = {given[name]!r}", told)
    for name in ("n_samples", "train_examples", "validation_examples"):
        require(given.get(name, 1) >= 1, f"{name} = {given.get(name)}", "1 or more, or None")
    _check_validation(given)
    # Flags arrive converted to their types; keyword arguments may be a str or a list.
    modules = given.get("target_modules")
    require(not isinstance(modules, str), f"the text {modules!r} as target_modules", "a list of names")
    require(modules is None or len(modules) > 0, "target_modules without a name", "at least one name, or None")
    columns = given.get("columns", {})
    require(isinstance(columns, Mapping), f"columns = {columns!r}", "a mapping of our column names to the data's")
    given |= {
        name: kind(given[name]) for name, kind in {"init_from": Path, "target_modules": tuple}.items() if name in given
    }
    if (asked := given.get("question")) is not None:
        if "choices" in given:
            raise ConfigError("got choices and a question, which brings its own; leave --choices out")
        given["question"] = question_given(asked) if isinstance(asked, Mapping) else read_question(Path(asked))
    own = {name: given.pop(name) for name in _direct_names() & given.keys()}
    named = output if output.name not in ("", "..") else output.resolve()
    work_dir = Path(given.pop("work_dir", named.with_name(f"{named.name}.work")))
    default_template = "template" not in given
    if "base_model" not in own:
        own["base_model"] = base_model_of(own.get("init_from"))
    recipe = Recipe(
        data=data,
        method=given.get("method"),
        posterior=_take(PosteriorConfig, given),
        training=_take(TrainConfig, given, work_dir=work_dir),
        prompt=prompt_of(given, NEW_PROMPT),
        default_template=default_template,
        sampling=sampling_of(given, SamplingConfig()),
        policy={name: given.pop(name) for name in THRESHOLDS if name in given} or None,
        command=command,
        **own,
    )
    if given:
        raise ConfigError(f"got unknown settings {', '.join(sorted(given))}, expected those of `blora train --help`")
    return recipe


def _check_validation(given: Mapping[str, Any]) -> None:
    """Raise an error if one of the settings of validation rows is of no use beside the others."""
    changed = {name for name in ("split_seed", "validation_split") if given.get(name, _USUAL[name]) != _USUAL[name]}
    if "validation" in given and "split_seed" in changed:
        raise ConfigError("got --split-seed with --validation, so that no rows are divided: leave one of them out")
    if "validation" not in given and "validation_split" in changed:
        raise ConfigError("got --validation-split without --validation, whose split it is: give both, or neither")


def prompt_of(given: dict[str, Any], start: PromptConfig) -> PromptConfig:
    """Return prompt settings with those that are given in place of the ones at the start, and remove these."""
    chosen: dict[str, Any] = {name: given.pop(name) for name in PROMPT if name in given}
    if "choices" in chosen:
        text = isinstance(chosen["choices"], str)
        require(not text, f"the text {chosen['choices']!r} as choices", "a list of texts")
        chosen["choices"] = tuple(chosen["choices"])
    if chosen.get("normalization", start.normalization) != start.normalization:
        chosen["length_power"] = NEW_PROMPT.length_power  # the one at the start was fitted with another divisor
    return replace(start, **chosen)


def sampling_of(given: dict[str, Any], start: SamplingConfig) -> SamplingConfig:
    """Return settings of an adapter's draws, as `prompt_of` does; the number of draws is left to the caller."""
    return replace(
        start,
        seed=given.pop("bank_seed", start.seed),
        stop_error=given.pop("stop_error", start.stop_error),
    )


def _direct_names() -> set[str]:
    """Return the names of the settings that are fields of `Recipe` itself, not of one of its configs."""
    nested = {"data", "method", "posterior", "training", "prompt", "default_template", "sampling", "policy", "command"}
    return {field.name for field in fields(Recipe)} - nested


def _take(config: type[T], given: dict[str, Any], **more: Any) -> T:
    """Return a config made from the given settings that are its fields, and remove these from `given`."""
    names = [field.name for field in fields(config) if field.name in given]  # type: ignore[arg-type]
    return config(**{name: given.pop(name) for name in names}, **more)
