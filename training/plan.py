"""The plan of a run: the kind of its head, the layers with a LoRA, and the number of draws, by the recipe's settings.

Under `--head auto`, a setting that a head does without means that there is none: one of a posterior over a LoRA, or of
the language model's own scores. A setting of any LoRA means that there is a LoRA, below the head if there is a head. A
setting of the steps is refused if nothing is trained in steps.
"""

from collections.abc import Iterable
from typing import Literal

from blora.config import PromptConfig, ReadoutName
from blora.decision.abstention import Policy
from blora.errors import ConfigError
from blora.training.config import N_SAMPLES, N_SAMPLES_HEAD, TrainConfig
from blora.training.recipe import Recipe

__all__ = ["n_samples_of", "plan_of"]

# Settings of a posterior's weights and of its training, which a plain LoRA does without.
OF_WEIGHTS = (
    *("family", "bayesian_layers", "inducing_rows", "inducing_cols"),
    *("prior_std", "lambda_max", "lambda_init", "scale_init"),
    *("learning_rate", "input_learning_rate", "scale_learning_rate", "kl_weight", "kl_warmup"),
    *("train_draws", "validation_draws"),
)
# Settings of a posterior over a LoRA and of the language model's own scores, which a head does without.
OF_POSTERIOR = ("method", *OF_WEIGHTS, "stop_error", "normalization")
# Settings of any LoRA, and of the steps that train it.
OF_LORA = ("init_from", "target_modules", "rank", "alpha", "lora_learning_rate")
OF_STEPS = (
    *("epochs", "batch_size", "gradient_accumulation", "head_learning_rate", "warmup", "max_grad_norm", "patience"),
    "report_to",
)


def plan_of(recipe: Recipe, prompt: PromptConfig) -> tuple[ReadoutName | Literal["none"], str]:
    """Return the kind of the head, and the layers to adapt.

    Args:
        recipe: the settings of the run.
        prompt: the recipe's prompt with the choices and the template of the rows.

    Raises:
        ConfigError: if settings exclude each other or have no effect, or the policy needs a head or draws that there
            are not.
    """
    fixed = prompt.choices is not None
    # The end of a choice has no effect on a linear head, which reads no choice; a pointer head reads every choice.
    of_scores = ("choice_end",) if fixed and recipe.head != "pointer" else ()
    of_posterior = _changed(recipe, (*OF_POSTERIOR, *of_scores))
    head: ReadoutName | Literal["none"]
    if recipe.head == "auto":
        readable = prompt.scoring == "text" and (fixed or prompt.choice_end != "none")
        head = "linear" if fixed else "pointer"
        head = head if readable and not of_posterior else "none"
    else:
        head = recipe.head
    if head != "none" and prompt.scoring == "label":
        raise ConfigError(f"got --scoring label with --head {head}, which reads no letters: leave one of them out")
    if head == "linear" and not fixed:
        raise ConfigError(
            "got --head linear for rows that bring their own choices, expected fixed ones: name them with --choices, "
            "or use --head pointer"
        )
    if head != "none" and of_posterior:
        raise ConfigError(
            f"got {_flags(of_posterior)} with head {head}, which does without such a setting; use head none, or leave "
            "the setting out"
        )
    if recipe.method == "lora" and (idle := _changed(recipe, (*OF_WEIGHTS, "n_samples"))):
        raise ConfigError(
            f"got {_flags(idle)} with --method lora, which trains one set of weights, without a posterior, at the rate "
            "--lora-learning-rate; leave the setting out"
        )
    layers = recipe.layers or ("all" if head == "none" or _changed(recipe, OF_LORA) else "none")
    if head == "none" and layers == "none":
        raise ConfigError("got neither layers nor a head, expected one of them: leave --layers out")
    if layers == "none" and (idle := _changed(recipe, (*OF_LORA, *OF_STEPS))):
        raise ConfigError(
            f"got {_flags(idle)} with a head alone, which takes no steps and has no LoRA; expected --layers, as in "
            "last:20, for a LoRA below the head, or --head none for one without a head; otherwise leave the setting out"
        )
    if head == "none" and (idle := _changed(recipe, ("depths", "head_learning_rate"))):
        raise ConfigError(f"got {_flags(idle)} without a head, which alone has such a setting: leave it out")
    everywhere = head == "none" and recipe.posterior.method == "bayesian" and recipe.bayesian_layers is None
    if everywhere and _changed(recipe, ("lora_learning_rate",)):
        raise ConfigError(
            "got --lora-learning-rate with a posterior in every adapted layer, which learns at --learning-rate; "
            "expected --bayesian-layers, so that other layers get plain LoRA, or --method lora; otherwise leave the "
            "setting out"
        )
    if head == "none" and "min_familiarity" in (recipe.policy or {}):
        raise ConfigError("got --min-familiarity without a head, whose states a familiarity reads: leave it out")
    if recipe.policy is not None:
        Policy.from_mapping(recipe.policy).check_draws(n_samples_of(recipe, head=head != "none"))
    return head, layers


def n_samples_of(recipe: Recipe, *, head: bool) -> int:
    """Return the number of the adapter's draws, with a head or without one."""
    if not head and recipe.posterior.method == "lora":  # one set of weights, so one draw
        return 1
    return recipe.n_samples or (N_SAMPLES_HEAD if head else N_SAMPLES)


def _changed(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Return those of the names whose setting differs from its default."""
    usual = Recipe(data=recipe.data, training=TrainConfig(work_dir=recipe.training.work_dir), command=recipe.command)
    pairs = [(recipe, usual)]
    pairs += [(getattr(recipe, part), getattr(usual, part)) for part in ("posterior", "training", "sampling", "prompt")]
    return [
        name
        for name in names
        if any(getattr(given, name, None) != getattr(default, name, None) for given, default in pairs)
    ]


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
