"""A causal language model run in parts: the layers below a given one, the layers from there on, and the output head.

Below the first layer in which draws differ every draw computes the same, so that part need run once a question; below
the first adapted layer nothing is ever learnt, so that part need run once in all of training. Each part is a view made
for one call: a shallow copy of the model that shares its layers, in which pass-through layers stand where nothing is to
be computed. Nothing is swapped inside the model itself.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from blora.errors import BaseModelError
from blora.inference.packing import States
from blora.posterior.draws import Draws
from blora.posterior.inject import layer_index

__all__ = ["branching_layer", "final_states", "first_layer", "head", "states_below"]


def first_layer(modules: Iterable[str]) -> int:
    """The lowest decoder layer among modules, by their names; below it the base model is untouched."""
    return min(layer_index(name) or 0 for name in modules)


def branching_layer(draws: Draws) -> int | None:
    """The lowest decoder layer whose factors differ among draws, None where no draw differs from another."""
    differing = [name for name, factors in draws.factors.items() if factors.differ]
    return first_layer(differing) if differing else None


def states_below(model: PreTrainedModel, layer: int, known: States | None, **inputs: Any) -> Tensor:
    """The hidden states that enter a decoder layer, (B, T, D).

    Args:
        model: a causal language model.
        layer: index of the decoder layer, which is not run.
        known: (B, T, D) that enter a lower layer, to go on from; None starts at the bottom.
        inputs: input_ids, position_ids and attention_mask, as for the model.

    Raises:
        BaseModelError: if the model has no list of decoder layers, or gives none its states.
    """
    path, layers = _layers(model)
    tap = _Tap()
    below = [*_from(layers, known)[:layer], tap]
    _decoder(_view(model, path, nn.ModuleList(below)))(**inputs, use_cache=False)
    if tap.seen is None:
        raise BaseModelError("got a model whose layers take no hidden states, expected an ordinary decoder")
    return tap.seen


def final_states(model: PreTrainedModel, known: States | None, **inputs: Any) -> Tensor:
    """The decoder's output, (B, T, D): what its head reads.

    Args:
        model: a causal language model.
        known: (B, T, D) from `states_below`, to go on from; None runs every layer.
        inputs: as for `states_below`.
    """
    if known is not None:
        path, layers = _layers(model)
        model = _view(model, path, nn.ModuleList(_from(layers, known)))
    output: Tensor = _decoder(model)(**inputs, use_cache=False).last_hidden_state
    return output


def head(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits (N, V) of any final states (N, D), with whatever the model does to its logits."""
    given = _Given(BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states[None]))
    # The decoder is replaced, so the ids are never looked at.
    ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    logits: Tensor = _view(model, model.base_model_prefix, given)(input_ids=ids, use_cache=False).logits[0]
    return logits


class _Pass(nn.Module):
    """A layer that does nothing."""

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return hidden_states


class _Tap(_Pass):
    """A layer that keeps what it is given."""

    seen: Tensor | None = None

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = hidden_states
        return hidden_states


class _Given(nn.Module):
    """A module whose output is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def _from(layers: nn.ModuleList, known: States | None) -> list[nn.Module]:
    """The layers, where those below known states do nothing."""
    if known is None:
        return list(layers)
    return [*(_Pass() for _ in range(known.layer - 1)), _Given(known.values), *layers[known.layer :]]


def _decoder(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule(model.base_model_prefix)


def _layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder's list of layers and its name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and layer_index(f"{name}.0") == 0:
            return name, module
    raise BaseModelError(f"got {type(model).__name__}, whose decoder layers have an unknown name; use another model")


def _view(module: Any, path: str, replacement: nn.Module) -> Any:
    """A copy of a module that shares everything with it but the submodule at a path."""
    name, _, rest = path.partition(".")
    view = copy.copy(module)
    view.__dict__["_modules"] = dict(module._modules)
    view._modules[name] = _view(module.get_submodule(name), rest, replacement) if rest else replacement
    return view
