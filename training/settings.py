"""Conversion of flags and keyword arguments to the recipe of a training run."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from blora.checks import require
from blora.config import PosteriorConfig, PromptConfig, SamplingConfig
from blora.errors import ConfigError
from blora.scores import SCORES
from blora.training.config import NEW_PROMPT, TrainConfig
from blora.training.questions import question_given, read_question
from blora.training.recipe import Recipe
from blora.training.sources import Rows

__all__ = ["prompt_of", "recipe_of", "sampling_of"]

T = TypeVar("T")

# Prompt settings that the user chooses; the length power is found on validation rows.
PROMPT = ("choices", "template", "scoring", "normalization", "choice_end")
THRESHOLDS = tuple(score.threshold for score in SCORES.values())


def recipe_of(data: Rows, output: Path, *, command: str, **settings: Any) -> Recipe:
    """Return the recipe of a training run.

    Args:
        data: the rows to train on.
        output: the adapter directory to write; checkpoints go to OUTPUT.work unless `work_dir` is given.
        command: the command that started the run, for the training record.
        settings: values by flag name of `blora train`, with underscores; None or missing means the default.

    Raises:
        ConfigError: if a setting is unknown or out of range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    usual = TrainConfig(work_dir=output).learning_rate
    if given.get("method") == "lora" and given.get("learning_rate", usual) != usual:
        raise ConfigError(
            "got --learning-rate with --method lora, which has no inducing weights; expected --lora-learning-rate"
        )
    # Flags arrive converted to their types; keyword arguments may be a str or a list.
    given |= {
        name: kind(given[name]) for name, kind in {"init_from": Path, "target_modules": tuple}.items() if name in given
    }
    if (asked := given.get("question")) is not None:
        if "choices" in given:
            raise ConfigError("got choices and a question, which brings its own; leave --choices out")
        given["question"] = question_given(asked) if isinstance(asked, Mapping) else read_question(Path(asked))
    own = {name: given.pop(name) for name in _direct_names() & given.keys()}
    work_dir = Path(given.pop("work_dir", output.with_name(f"{output.name}.work")))
    default_template = "template" not in given
    recipe = Recipe(
        data=data,
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


def prompt_of(given: dict[str, Any], start: PromptConfig) -> PromptConfig:
    """Return prompt settings with those that are given in place of the ones at the start, and remove these."""
    chosen: dict[str, Any] = {name: given.pop(name) for name in PROMPT if name in given}
    if "choices" in chosen:
        text = isinstance(chosen["choices"], str)
        require(not text, f"the text {chosen['choices']!r} as choices", "a list of texts")
        chosen["choices"] = tuple(chosen["choices"])
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
    nested = {"data", "posterior", "training", "prompt", "default_template", "sampling", "policy", "command"}
    return {field.name for field in fields(Recipe)} - nested


def _take(config: type[T], given: dict[str, Any], **more: Any) -> T:
    """Return a config made from the given settings that are its fields, and remove these from `given`."""
    names = [field.name for field in fields(config) if field.name in given]  # type: ignore[arg-type]
    return config(**{name: given.pop(name) for name in names}, **more)
