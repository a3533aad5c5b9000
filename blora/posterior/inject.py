"""Selection of the linear modules of a causal language model that get a LoRA, and wrapping of these modules."""

import re
from collections.abc import Iterable, Mapping, Sequence

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers import PreTrainedModel

from blora.errors import AdapterError, BaseModelError, ConfigError
from blora.posterior.layer import LoraLinear, linear_shape

__all__ = [
    "check_modules",
    "decoder_layers",
    "default_targets",
    "eject",
    "inject",
    "layer_index",
    "linear_modules",
    "linear_targets",
    "n_layers_of",
    "parse_layers",
    "select_modules",
    "target_names",
]

# Linear modules, by the last part of their names, whose weights their layers read apart from the forward pass: Mamba's.
READ_APART = ("dt_proj",)
# Names of the linear modules that compute queries and values: separate, joined, and behind a low-rank projection.
QUERIES_AND_VALUES = (
    ("q_proj", "v_proj"),
    ("qkv_proj",),
    ("query_key_value",),
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("Wqkv",),
)

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer|block)\.(\d+)(?:\.|$)")


def layer_index(name: str) -> int | None:
    """Return the index of the decoder layer that a module's name is in, or None.

    >>> layer_index("model.layers.12.self_attn.q_proj")
    12
    """
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def parse_layers(spec: str, n_layers: int) -> tuple[int, ...]:
    """Return the layer indices named by `all`, `last:N`, `first-last` or one index.

    >>> parse_layers("last:2", 30)
    (28, 29)
    >>> parse_layers("0-3", 30)
    (0, 1, 2, 3)

    Raises:
        ConfigError: if the text has another form or names a layer that does not exist.
    """
    if spec == "all":
        return tuple(range(n_layers))
    if match := re.fullmatch(r"last:(\d+)", spec):
        first, last = n_layers - int(match.group(1)), n_layers - 1
    elif match := re.fullmatch(r"(\d+)(?:-(\d+))?", spec):
        first = int(match.group(1))
        last = int(match.group(2) or first)
    else:
        raise ConfigError(f"got layers {spec!r}, expected all, last:N, N or FIRST-LAST, as in last:8 or 0-11")
    if not 0 <= first <= last < n_layers:
        raise ConfigError(f"got layers {spec!r} of a model with {n_layers}, expected indices within 0-{n_layers - 1}")
    return tuple(range(first, last + 1))


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name of the decoder's list of layers, and the list.

    Raises:
        BaseModelError: if no list of layers has a known name.
    """
    first: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and layer_index(f"{name}.0") == 0:
            # Every pass asks for the layers, so that the search ends where they begin.
            if any(own is module for own in model.get_decoder().modules()):
                return name, module
            first = first or (name, module)  # a multimodal model has lists of other layers too
    if first is None:
        raise BaseModelError(f"got {type(model).__name__}, whose layers have an unknown name; use another model")
    return first


def n_layers_of(model: PreTrainedModel) -> int:
    """Return the length of the decoder's list of layers, which the model's settings may count otherwise.

    Raises:
        BaseModelError: as `decoder_layers`.
    """
    return len(decoder_layers(model)[1])


def linear_modules(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return (d_out, d_in) of every linear module of the decoder layers by name, wrapped in `LoraLinear` or not.

    Modules whose weights a layer reads itself are left out, since an update in their forward pass would not be seen.
    """
    shapes: dict[str, tuple[int, int]] = {}
    path, layers = decoder_layers(model)
    for name, module in layers.named_modules(prefix=path):
        shape = linear_shape(module.base if isinstance(module, LoraLinear) else module)
        is_read_apart = name.rpartition(".")[2] in READ_APART
        if shape is not None and not is_read_apart and not isinstance(_parent(model, name), LoraLinear):
            shapes[name] = shape
    return shapes


def check_modules(model: PreTrainedModel, modules: Mapping[str, tuple[int, int]]) -> None:
    """Raise an error unless adapted modules are linear modules of the decoder layers, of these (d_out, d_in).

    Raises:
        AdapterError: naming the first other module.
    """
    linear = linear_modules(model)
    for name, shape in modules.items():
        if (found := linear.get(name)) != tuple(shape):
            raise AdapterError(
                f"got adapted module {name} of shape {tuple(shape)}, but the base model has "
                f"{found or 'no such linear module in its decoder layers'}; give the base model it was trained on, or "
                "train again with other target modules"
            )


def linear_targets(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names, without their place, of every linear module of the decoder layers, as PEFT's `all-linear`."""
    return target_names(linear_modules(model))


def default_targets(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the modules that PEFT adapts by default in this architecture, else the query and value projections.

    Raises:
        ConfigError: if PEFT knows no default, and the projections have none of the usual names.
    """
    targets = PEFT_TARGETS.get(model.config.model_type)
    if targets and not isinstance(targets, str):  # PEFT's text is a pattern for whole paths
        return tuple(sorted(targets))
    linear = linear_targets(model)
    if usual := next((names for names in QUERIES_AND_VALUES if {*names} <= {*linear}), None):
        return usual
    raise ConfigError(
        f"got model type {model.config.model_type!r}, which has no default target modules, expected some of "
        f"{list(linear)}: name them with --target-modules"
    )


def target_names(modules: Iterable[str]) -> tuple[str, ...]:
    """Return the names of modules without their place, sorted, each once.

    >>> target_names(["model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"])
    ('v_proj',)
    """
    return tuple(sorted({name.rsplit(".", 1)[-1] for name in modules}))


def select_modules(model: PreTrainedModel, targets: Sequence[str], layers: Iterable[int]) -> dict[str, tuple[int, int]]:
    """Return (d_out, d_in) of the linear modules in the given layers whose name is or ends in a target, by name.

    Raises:
        ConfigError: if a target matches no linear module there.
    """
    wanted = set(layers)
    selected: dict[str, tuple[int, int]] = {}
    matched: set[str] = set()
    linear = linear_modules(model)
    for name, shape in linear.items():
        target = next((t for t in targets if name == t or name.endswith(f".{t}")), None)
        if target is not None and layer_index(name) in wanted:
            selected[name] = shape
            matched.add(target)
    if missing := sorted(set(targets) - matched):
        raise ConfigError(
            f"got target modules {missing} that match no linear module in layers {sorted(wanted)}, "
            f"expected some of {list(target_names(linear))}"
        )
    return selected


def inject(model: nn.Module, names: Iterable[str]) -> None:
    """Wrap the named linear modules in `LoraLinear`, in place; already wrapped modules stay as they are."""
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, LoraLinear):
            _replace(model, name, LoraLinear(module, name))


def eject(model: nn.Module) -> None:
    """Restore the original linear modules, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            _replace(model, name, module.base)


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    setattr(_parent(model, name), name.rpartition(".")[2], module)
