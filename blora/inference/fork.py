"""Partial runs of a causal language model: the layers below a given one, and everything from there on.

Below the first layer in which draws differ, all draws share one computation, which runs once per question; below the
first adapted layer nothing is trained, so that part runs once in all of training. Each partial run is the model's own
forward pass on a view made for one call: a shallow copy of the model that shares its layers, with stand-ins for the
modules to skip. The model itself is never changed.

The last layer computes keys and values at every position, and everything else only at the positions that the output
head reads.

A model whose layers share more than hidden states, or whose attention keeps no keys and values, cannot run in parts;
`check_packing` tests this.
"""

import copy
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from blora.errors import BaseModelError
from blora.inference.packing import States
from blora.posterior.draws import Draws
from blora.posterior.inject import decoder_layers, layer_index, n_layers_of

__all__ = [
    "allow_partial_runs",
    "branching_layer",
    "first_layer",
    "forbid_partial_runs",
    "hidden_at",
    "logits_at",
    "runs_in_parts",
    "states_at",
    "why_whole",
]

# Attribute of a model: the reason why it cannot run in parts, None if it can.
_WHOLE = "_blora_runs_whole_because"
# Submodules of a layer, by the last part of their names, that compute each position from their input at that position
# alone, and whose output at a position is used only at that position.
POSITION_WISE = ("q_proj", "o_proj", "out_proj", "mlp")


def runs_in_parts(model: PreTrainedModel) -> bool:
    """Return whether a model may run in parts, as every model may unless `forbid_partial_runs` was called for it."""
    return why_whole(model) is None


def why_whole(model: PreTrainedModel) -> str | None:
    """Return the reason why a model may not run in parts; None if it may."""
    return getattr(model, _WHOLE, None)


def forbid_partial_runs(model: PreTrainedModel, reason: str) -> None:
    """Make all later runs of a model complete forward passes."""
    setattr(model, _WHOLE, reason)


def allow_partial_runs(model: PreTrainedModel) -> None:
    """Allow later runs of a model in parts again, after `forbid_partial_runs`."""
    setattr(model, _WHOLE, None)


def first_layer(modules: Iterable[str]) -> int:
    """Return the index of the lowest decoder layer among module names, below which the base model is unchanged."""
    return min(layer_index(name) or 0 for name in modules)


def branching_layer(draws: Draws) -> int | None:
    """Return the index of the lowest decoder layer whose factors differ among draws, or None if all draws agree."""
    differing = [name for name, factors in draws.factors.items() if factors.differ]
    return first_layer(differing) if differing else None


def states_at(
    model: PreTrainedModel, depths: Iterable[int], known: States | None = None, **inputs: Any
) -> dict[int, Tensor]:
    """Return the hidden states (B, T, D) at several depths, from one pass that ends at the deepest.

    Args:
        model: a causal language model, or an encoder, which has no output head.
        depths: indices of layers, for the states that enter them, or enter the next layer that runs if the
            model skips one; the number of layers stands for the states that enter the output head.
        known: states that enter a layer that is above none of the depths, from which to continue; None starts at the
            embeddings.
        inputs: input_ids, position_ids, attention_mask and a cache, as for the model.

    Raises:
        BaseModelError: if the model has no list of layers, or does not run them.
    """
    found = {known.layer: known.values} if known is not None else {}
    deeper = sorted({*depths} - {*found})
    if not deeper:
        return found
    view, last = _from(model, known), deeper[-1]
    path, layers = decoder_layers(view)
    read = [
        _StandIn(layer, _keep_in(found, deeper, index, layer)) if index >= deeper[0] else layer
        for index, layer in enumerate(layers)
    ]
    view = _view(view, path, nn.ModuleList(read))
    head = model.get_output_embeddings()
    if last == len(layers) and head is not None:
        view = _view(view, _head_path(model), _StandIn(head, _arrive))
    try:
        output = view(**({"use_cache": False} if head is not None else {}) | inputs)
        if last == len(layers) and head is None:
            found[last] = output.last_hidden_state
    except _ArrivedError as arrived:
        found[last] = arrived.states
    if {*deeper} - {*found}:
        raise BaseModelError(f"got {type(model).__name__}, which does not run its list of layers; use another model")
    return found


def _keep_in(found: dict[int, Tensor], depths: list[int], index: int, layer: nn.Module) -> Callable[..., Any]:
    """Return a layer's forward pass that first stores the states that enter it, and ends the run at the last depth.

    Args:
        found: the states by depth, to add to.
        depths: the depths to read, ascending.
        index: index of the layer; its states are also those of skipped layers right below it.
        layer: the layer.
    """

    def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        for depth in depths:
            if depth == index or (depth < index and depth not in found):
                found[depth] = hidden_states
        if depths[-1] in found:
            raise _ArrivedError(hidden_states)
        return layer(hidden_states, *args, **kwargs)

    return run


def logits_at(model: PreTrainedModel, known: States | None, row: Tensor, column: Tensor, **inputs: Any) -> Tensor:
    """Return the model's logits at the given positions, (P, V), with all of the model's post-processing.

    Args:
        model: a causal language model.
        known: states (B, T, D) from `states_at`, from which to continue; None runs every layer. Those at the number of
            layers are what the output head reads.
        row: (P,) row of each position; the output head computes no other positions.
        column: (P,) column of each position.
        inputs: as for `states_at`.

    Raises:
        BaseModelError: if the model has no output embeddings.
    """
    head = model.get_output_embeddings()

    def picked(hidden_states: Tensor) -> Any:
        if known is not None and _at_the_end(model, known):
            hidden_states = known.values  # some models scale between their decoder and the head, which is done already
        return head(hidden_states[row, column][None])  # (1, P, V)

    logits: Tensor = _before_head(model, known, row, column, picked, inputs).logits[0]
    return logits


def hidden_at(model: PreTrainedModel, known: States | None, row: Tensor, column: Tensor, **inputs: Any) -> Tensor:
    """Return the inputs of the output head at the given positions, (P, D); arguments as for `logits_at`."""
    if known is not None and _at_the_end(model, known):
        return known.values[row, column]
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
    """Return the model's output with its head replaced by a function, valid only at the given positions."""
    head, path = model.get_output_embeddings(), _head_path(model)
    if known is not None and _at_the_end(model, known):
        view = _without_layers(model, known.values)
    else:
        view = _from(_narrowed(model, row, column, inputs["input_ids"].shape) if runs_in_parts(model) else model, known)
    return _view(view, path, _StandIn(head, run))(**inputs, use_cache=False)


def _head_path(model: PreTrainedModel) -> str:
    """Return the name of the module that is the model's output head."""
    head = model.get_output_embeddings()
    for name, module in chain(model.named_children(), model.named_modules()):  # most heads are at the top
        if module is head:
            return str(name)
    raise BaseModelError(f"got {type(model).__name__}, which has no output embeddings; use another model")


class _StandIn(nn.Module):
    """A replacement for a module, with all of the module's attributes and another forward pass."""

    def __init__(self, module: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self._modules["replaced"] = module
        self._run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._modules["replaced"], name)


class _ArrivedError(Exception):
    """Exception that ends a forward pass early and carries the requested states."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _arrive(hidden_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
    raise _ArrivedError(hidden_states)


def _from(model: PreTrainedModel, known: States | None) -> PreTrainedModel:
    """Return a view of the model that skips the lower layers and starts from known states; None runs every layer."""
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


def _at_the_end(model: PreTrainedModel, known: States) -> bool:
    """Return whether states are those that enter the output head."""
    return known.layer == n_layers_of(model)


class _StatesAlone(BaseModelOutput):
    """The output of a decoder that ran no layer: None for all that its layers would have given beside the states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _without_layers(model: PreTrainedModel, states: Tensor) -> PreTrainedModel:
    """Return a view of the model whose decoder runs no layer and returns states that enter the output head."""
    decoder = decoder_layers(model)[0].rpartition(".")[0]

    def done(*args: Any, **kwargs: Any) -> BaseModelOutput:
        return _StatesAlone(last_hidden_state=states)

    view: PreTrainedModel = _view(model, decoder, _StandIn(model.get_submodule(decoder), done))
    return view


def _narrowed(model: PreTrainedModel, row: Tensor, column: Tensor, shape: torch.Size) -> PreTrainedModel:
    """Return a view of the model whose last layer computes position-wise modules only at positions (P,) of (B, T).

    At all other positions the last layer's output is undefined. If the layer has a module twice, the second one may
    use the first one's output at every position: nothing is skipped.
    """
    n_rows, width = shape
    counts = row.bincount(minlength=n_rows)
    n_picked = int(counts.max())
    if n_picked >= width:
        return model
    order = row.argsort(stable=True)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
    columns = torch.full((n_rows, n_picked), width, device=row.device)  # padding: the column after the last one
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
    found = [(name, module) for name, module in layers[-1].named_modules() if name.rpartition(".")[2] in POSITION_WISE]
    if len(found) > len({name.rpartition(".")[2] for name, _ in found}):
        return model
    for name, module in found:
        model = _view(model, f"{last}.{name}", _StandIn(module, at_positions(module)))
    return model


def _view(module: Any, path: str, replacement: nn.Module) -> Any:
    """Return a copy of a module that shares everything with the original except the submodule at a path."""
    name, _, rest = path.partition(".")
    view = copy.copy(module)
    view.__dict__["_modules"] = dict(module._modules)
    view._modules[name] = _view(module.get_submodule(name), rest, replacement) if rest else replacement
    return view
