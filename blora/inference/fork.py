"""A causal language model run in parts: the layers below a given one, and everything from there on.

Below the first layer in which draws differ every draw computes the same, so that part need run once a question; below
the first adapted layer nothing is ever learnt, so that part need run once in all of training. Each part is the model's
own forward pass, on a view made for one call: a shallow copy of the model that shares its layers, in which stand-ins
take the place of what is not to be computed. Nothing is swapped inside the model itself.

Of the last layer little is needed: keys and values everywhere, all else only at the positions that the head will see.

A model whose layers share more than hidden states, or whose attention keeps no keys and values, cannot be run in parts;
`check_packing` finds out.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blora.errors import BaseModelError
from blora.inference.packing import States
from blora.posterior.draws import Draws
from blora.posterior.inject import layer_index

__all__ = [
    "branching_layer",
    "decoder_layers",
    "first_layer",
    "hidden_at",
    "keep_whole",
    "logits_at",
    "runs_in_parts",
    "states_below",
    "take_apart",
    "why_whole",
]

# Attribute of a model that says why it has to run in one piece.
_WHOLE = "_blora_runs_whole_because"
# Parts of a layer whose output at a position depends on their input at that position alone, and that no other position
# of the layer reads, by the last part of their names.
POSITION_WISE = ("q_proj", "o_proj", "out_proj", "mlp")


def runs_in_parts(model: PreTrainedModel) -> bool:
    """Return whether a model may be run in parts: any may, unless `keep_whole` was called for it."""
    return why_whole(model) is None


def why_whole(model: PreTrainedModel) -> str | None:
    """Return why a model has to run in one piece; None where it may be run in parts."""
    return getattr(model, _WHOLE, None)


def keep_whole(model: PreTrainedModel, reason: str) -> None:
    """Have a model run in one piece from now on."""
    setattr(model, _WHOLE, reason)


def take_apart(model: PreTrainedModel) -> None:
    """Take `keep_whole` back."""
    setattr(model, _WHOLE, None)


def first_layer(modules: Iterable[str]) -> int:
    """The lowest decoder layer among modules, by their names; below it the base model is untouched."""
    return min(layer_index(name) or 0 for name in modules)


def branching_layer(draws: Draws) -> int | None:
    """The lowest decoder layer whose factors differ among draws, None where no draw differs from another."""
    differing = [name for name, factors in draws.factors.items() if factors.differ]
    return first_layer(differing) if differing else None


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name of the decoder's list of layers, and the list.

    Raises:
        BaseModelError: if no list has a name that is known.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and layer_index(f"{name}.0") == 0
    ]
    if not lists:
        raise BaseModelError(
            f"got {type(model).__name__}, whose decoder layers have an unknown name; use another model"
        )
    decoder = set(model.get_decoder().modules())
    return max(lists, key=lambda item: item[1] in decoder)  # the first one there, for a model that also sees or hears


def states_below(model: PreTrainedModel, layer: int, known: States | None, **inputs: Any) -> Tensor:
    """The hidden states that enter a decoder layer, (B, T, D).

    Args:
        model: a causal language model.
        layer: index of the decoder layer, which is not run.
        known: (B, T, D) that enter a lower layer, to go on from; None starts at the bottom.
        inputs: input_ids, position_ids and attention_mask, as for the model.

    Raises:
        BaseModelError: if the model has no list of decoder layers, or does not run them.
    """
    path, layers = decoder_layers(model)
    try:
        _view(_from(model, known), f"{path}.{layer}", _StandIn(layers[layer], _arrive))(**inputs, use_cache=False)
    except _ArrivedError as arrived:
        return arrived.states
    raise BaseModelError(f"got {type(model).__name__}, which does not run its list of layers; use another model")


def logits_at(model: PreTrainedModel, known: States | None, row: Tensor, column: Tensor, **inputs: Any) -> Tensor:
    """The model's logits at some positions, (P, V), with whatever it does to them.

    Args:
        model: a causal language model.
        known: (B, T, D) from `states_below`, to go on from; None runs every layer.
        row: (P,) the rows of the positions; the output head sees no others.
        column: (P,) their columns.
        inputs: as for `states_below`.

    Raises:
        BaseModelError: if the model has no output embeddings.
    """
    head = model.get_output_embeddings()

    def picked(hidden_states: Tensor) -> Any:
        return head(hidden_states[row, column][None])  # (1, P, V)

    logits: Tensor = _before_head(model, known, row, column, picked, inputs).logits[0]
    return logits


def hidden_at(model: PreTrainedModel, known: States | None, row: Tensor, column: Tensor, **inputs: Any) -> Tensor:
    """What enters the output head at some positions, (P, D); arguments as for `logits_at`."""
    try:
        _before_head(model, known, row, column, _arrive, inputs)
    except _ArrivedError as arrived:
        return arrived.states[row, column]
    raise BaseModelError(f"got {type(model).__name__}, which does not run its output embeddings; use another model")


def _before_head(
    model: PreTrainedModel,
    known: States | None,
    row: Tensor,
    column: Tensor,
    run: Callable[[Tensor], Any],
    inputs: dict[str, Any],
) -> Any:
    """The model's output with something else in its head's place, right at some positions alone."""
    head = model.get_output_embeddings()
    path = next((name for name, module in model.named_modules() if module is head), None)
    if path is None:
        raise BaseModelError(f"got {type(model).__name__}, which has no output embeddings; use another model")
    if runs_in_parts(model):
        model = _narrowed(model, row, column, inputs["input_ids"].shape)
    return _view(_from(model, known), path, _StandIn(head, run))(**inputs, use_cache=False)


class _StandIn(nn.Module):
    """What takes a module's place: all of its attributes, but another forward pass."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self._modules["replaced"] = module
        self._run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._modules["replaced"], name)


class _ArrivedError(Exception):
    """Leaves a forward pass with the states that were wanted of it."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _arrive(hidden_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
    raise _ArrivedError(hidden_states)


def _from(model: PreTrainedModel, known: States | None) -> PreTrainedModel:
    """The model, where the layer that known states enter takes them, whatever the layers below it give."""
    if known is None:
        return model
    path, layers = decoder_layers(model)
    first, values = layers[known.layer], known.values

    def skip(*args: Any, **kwargs: Any) -> Tensor:
        return values[None]  # some decoders take a layer's whole output, others its first element

    def start(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return first(values, *args, **kwargs)

    skipped = [_StandIn(layer, skip) for layer in layers[: known.layer]]
    view: PreTrainedModel = _view(
        model, path, nn.ModuleList([*skipped, _StandIn(first, start), *layers[known.layer + 1 :]])
    )
    return view


def _narrowed(model: PreTrainedModel, row: Tensor, column: Tensor, shape: torch.Size) -> PreTrainedModel:
    """The model, whose last layer computes what it can only at some positions (P,) of (B, T), and else gives junk."""
    n_rows, width = shape
    counts = row.bincount(minlength=n_rows)
    n_picked = int(counts.max())
    if n_picked >= width:
        return model
    order = row.argsort(stable=True)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
    columns = torch.full((n_rows, n_picked), width, device=row.device)  # one beyond the last where a row has fewer
    columns[row[order], rank] = column[order]
    rows = torch.arange(n_rows, device=row.device)[:, None]

    def at_positions(module: nn.Module) -> Callable[[Tensor], Any]:
        def run(x: Tensor) -> Any:
            found = module(x[rows, columns.clamp(max=width - 1)])
            if not isinstance(found, Tensor):
                return module(x)
            spread = found.new_zeros(n_rows, width + 1, found.shape[-1])
            spread[rows, columns] = found
            return spread[:, :width]

        return run

    path, layers = decoder_layers(model)
    last = f"{path}.{len(layers) - 1}"
    for name, module in layers[-1].named_modules():
        if name.rpartition(".")[2] in POSITION_WISE:
            model = _view(model, f"{last}.{name}", _StandIn(module, at_positions(module)))
    return model


def _view(module: Any, path: str, replacement: nn.Module) -> Any:
    """A copy of a module that shares everything with it but the submodule at a path."""
    name, _, rest = path.partition(".")
    view = copy.copy(module)
    view.__dict__["_modules"] = dict(module._modules)
    view._modules[name] = _view(module.get_submodule(name), rest, replacement) if rest else replacement
    return view
