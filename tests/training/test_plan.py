"""What a run trains by its settings: no setting of a LoRA or of its posterior is ignored."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from blora.config import PosteriorConfig, PromptConfig
from blora.errors import ConfigError
from blora.training.commands.arguments import settings_of
from blora.training.commands.train import _parser
from blora.training.config import NEW_PROMPT, TrainConfig
from blora.training.plan import OF_LORA, OF_POSTERIOR, OF_STEPS, OF_WEIGHTS, n_samples_of, plan_of
from blora.training.recipe import Recipe, recipe_of

FIXED = PromptConfig(choices=("no", "yes"))
# Settings that make no difference to the adapter, or to a head as well.
OTHERS = {"work_dir", "resume", "trunk_cache_gib", "seed"}
CHANGED: dict[str, Any] = {
    "method": "lora",
    "family": "flow",
    "normalization": "none",
    "bayesian_layers": "last:1",
    "target_modules": ("q_proj",),
    "init_from": "lora",
    "report_to": "mlflow",
}


def recipe(**settings: Any) -> Recipe:
    return recipe_of([], Path("toy"), command="", **{"base_model": "tiny"} | settings)


def another(name: str) -> dict[str, Any]:
    """A setting by its name, with a value that is not the default."""
    if name in CHANGED:
        return {name: CHANGED[name]}
    usual = recipe()
    default = next(
        getattr(part, name) for part in (usual.training, usual.posterior, usual.sampling) if hasattr(part, name)
    )
    return {name: default / 2 if isinstance(default, float) else (default or 0.02) * 2}


def test_the_command_alone_trains_a_head_alone() -> None:
    given = settings_of(_parser().parse_args(["--data", "x", "--output", "toy"]), but=("data", "output", "base_model"))
    for found in (recipe(**given), recipe()):
        assert plan_of(found, FIXED) == ("linear", "none")
        assert plan_of(found, NEW_PROMPT) == ("pointer", "none")


@pytest.mark.parametrize("prompt", [FIXED, NEW_PROMPT], ids=["fixed", "own"])
@pytest.mark.parametrize("name", OF_POSTERIOR)
def test_a_setting_of_a_posterior_means_no_head(name: str, prompt: PromptConfig) -> None:
    assert plan_of(recipe(**another(name)), prompt) == ("none", "all")
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"got {flag} with head linear, which does without such a setting; use head"):
        plan_of(recipe(head="linear", **another(name)), FIXED)


def test_the_end_of_choices_is_a_setting_of_scores_where_a_head_would_read_no_choice() -> None:
    end = {"choice_end": "none"}
    assert plan_of(recipe(**end), replace(FIXED, **end)) == ("none", "all")
    with pytest.raises(ConfigError, match="got --choice-end with head linear"):
        plan_of(recipe(head="linear", **end), replace(FIXED, **end))
    spoken = {"choice_end": "newline" if NEW_PROMPT.choice_end != "newline" else "eos"}
    assert plan_of(recipe(**spoken), replace(NEW_PROMPT, **spoken)) == ("pointer", "none")


@pytest.mark.parametrize("name", ["n_samples", "train_examples", "validation_examples"])
@pytest.mark.parametrize("number", [0, -20])
def test_no_draws_or_rows_are_refused_and_not_taken_for_the_default(name: str, number: int) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = {number}, expected 1 or more, or None"):
        recipe(**{name: number})


def test_a_pointer_head_reads_fixed_choices_to_the_end_that_is_asked_for() -> None:
    end = {"choice_end": "eos" if NEW_PROMPT.choice_end == "newline" else "newline"}
    assert plan_of(recipe(head="pointer", **end), replace(FIXED, **end)) == ("pointer", "none")


@pytest.mark.parametrize("name", ["depths", "head_learning_rate"])
def test_a_setting_of_a_head_needs_a_head(name: str) -> None:
    setting = {"depths": "last"} if name == "depths" else another(name)
    layers = {} if name == "depths" else {"layers": "all"}
    assert plan_of(recipe(**setting, **layers), FIXED) == ("linear", layers.get("layers", "none"))
    for more in ({"head": "none"}, {"method": "lora"}):
        with pytest.raises(ConfigError, match=f"got --{name.replace('_', '-')} without a head"):
            plan_of(recipe(**setting, **more), FIXED)


def test_a_linear_head_needs_fixed_choices_and_no_head_reads_letters() -> None:
    with pytest.raises(ConfigError, match="got --head linear for rows that bring their own choices.* with --choices"):
        plan_of(recipe(head="linear"), NEW_PROMPT)
    letters = {"scoring": "label"}
    for head, prompt in (("linear", FIXED), ("pointer", NEW_PROMPT)):
        with pytest.raises(ConfigError, match=f"got --scoring label with --head {head}, which reads no letters"):
            plan_of(recipe(head=head, **letters), replace(prompt, **letters))
    assert plan_of(recipe(**letters), replace(FIXED, **letters)) == ("none", "all")


def test_a_rate_of_a_plain_lora_needs_a_layer_without_a_posterior() -> None:
    rate = another("lora_learning_rate")
    for more in ({"method": "lora"}, {"bayesian_layers": "last:1"}, {"head": "linear", "layers": "all"}):
        plan_of(recipe(**rate, **more), FIXED)
    for more in ({"head": "none"}, {"method": "bayesian"}):
        with pytest.raises(ConfigError, match="got --lora-learning-rate with a posterior in every adapted layer"):
            plan_of(recipe(**rate, **more), FIXED)


@pytest.mark.parametrize("method", ["bayesian", "lora"])
def test_a_method_that_is_asked_for_is_trained(method: str) -> None:
    found = recipe(method=method)
    assert plan_of(found, FIXED) == ("none", "all")
    assert found.posterior.method == method
    assert n_samples_of(found, head=False) == (1 if method == "lora" else 16)


@pytest.mark.parametrize("name", [*OF_WEIGHTS, "n_samples"])
def test_a_setting_of_a_posterior_is_refused_with_a_plain_lora(name: str) -> None:
    setting = {name: 4} if name == "n_samples" else another(name)
    with pytest.raises(ConfigError, match=f"got --{name.replace('_', '-')} with --method lora, which trains one set"):
        plan_of(recipe(method="lora", **setting), FIXED)


@pytest.mark.parametrize("name", OF_LORA)
def test_a_setting_of_a_lora_means_a_lora_below_the_head(name: str) -> None:
    assert plan_of(recipe(**another(name)), FIXED) == ("linear", "all")
    assert plan_of(recipe(layers="last:1", **another(name)), FIXED) == ("linear", "last:1")
    with pytest.raises(ConfigError, match=f"got --{name.replace('_', '-')} with a head alone.* expected --layers"):
        plan_of(recipe(layers="none", **another(name)), FIXED)


@pytest.mark.parametrize("name", OF_STEPS)
def test_a_setting_of_the_steps_needs_something_to_train_in_steps(name: str) -> None:
    with pytest.raises(ConfigError, match=f"got --{name.replace('_', '-')} with a head alone, which takes no steps"):
        plan_of(recipe(**another(name)), FIXED)
    assert plan_of(recipe(layers="all", **another(name)), FIXED) == ("linear", "all")
    if name != "head_learning_rate":
        assert plan_of(recipe(head="none", **another(name)), FIXED) == ("none", "all")


def test_every_setting_of_the_training_is_in_the_plan() -> None:
    known = {*OF_POSTERIOR, *OF_LORA, *OF_STEPS}
    for config in (PosteriorConfig, TrainConfig):
        assert {field.name for field in fields(config)} <= known | OTHERS
