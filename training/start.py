"""The LoRA that a run begins with: the modules to adapt, and the posterior over their weights before training."""

from dataclasses import replace
from pathlib import Path

from blora.adapter.lora import lora_shape, read_lora
from blora.adapter.opening import check_lora_base
from blora.base_model import BaseModel
from blora.errors import ConfigError
from blora.posterior.inject import (
    check_modules,
    default_targets,
    layer_index,
    linear_targets,
    n_layers_of,
    parse_layers,
    select_modules,
    target_names,
)
from blora.posterior.posterior import Posterior
from blora.training.recipe import Recipe

__all__ = ["check_below", "lora_of"]


def check_below(lora: Posterior, depth: int) -> None:
    """Check that a LoRA has no layer which the states at the last depth that a linear head reads do not depend on.

    Raises:
        ConfigError: if one of its layers is above.
    """
    if (highest := max(layer_index(name) or 0 for name in lora.modules_shape)) >= depth:
        raise ConfigError(
            f"got --layers up to {highest} with --depths up to {depth}, expected layers below {depth}: a LoRA above "
            "the states that the head reads changes nothing"
        )


def lora_of(recipe: Recipe, base: BaseModel, layers: str, *, below: bool) -> tuple[tuple[str, ...], Posterior]:
    """Return the names of the modules to adapt, and the posterior over their LoRA before training.

    Raises:
        AdapterError: if the LoRA to start from is not one of the base model, or has another size.
        ConfigError: if the LoRA to start from adapts other modules than the settings ask for.
    """
    n_layers = n_layers_of(base.model)
    form = replace(recipe.posterior, method="lora") if below else recipe.posterior
    if recipe.bayesian_layers is not None:
        form = replace(form, bayesian_layers=parse_layers(recipe.bayesian_layers, n_layers))
    if recipe.init_from is None:
        targets = recipe.target_modules or (linear_targets(base.model) if below else default_targets(base.model))
        modules = select_modules(base.model, targets, parse_layers(layers, n_layers))
    else:
        targets, modules = _modules_of(recipe, recipe.init_from, base, n_layers)
    posterior = Posterior(modules, form, recipe.training.seed)
    if recipe.init_from is not None:
        posterior.set_mean(read_lora(recipe.init_from, modules, form.rank, form.alpha))
    return tuple(targets), posterior


def _modules_of(
    recipe: Recipe, lora: Path, base: BaseModel, n_layers: int
) -> tuple[tuple[str, ...], dict[str, tuple[int, int]]]:
    """Return the names of the modules that a LoRA to start from adapts, and (d_out, d_in) of each module.

    Raises:
        AdapterError: if the LoRA is not one of the base model.
        ConfigError: if the settings ask for other modules.
    """
    check_lora_base(lora, base)
    modules = lora_shape(lora).modules
    check_modules(base.model, modules)
    own = target_names(modules)
    if recipe.target_modules is None and recipe.layers is None:
        return own, modules
    targets = recipe.target_modules or own
    layers = {index for name in modules if (index := layer_index(name)) is not None}
    wanted = layers if recipe.layers is None else parse_layers(recipe.layers, n_layers)
    if select_modules(base.model, targets, wanted).keys() != modules.keys():
        raise ConfigError(
            f"got other --target-modules or --layers than those of the LoRA {lora}, which adapts {', '.join(own)} in "
            f"layers {sorted(layers)}; leave both flags out, or start from a LoRA of the modules that they name"
        )
    return targets, modules
