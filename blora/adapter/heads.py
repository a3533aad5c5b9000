"""Reading of an adapter's decision head and of its familiarity, each from a file of tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from blora.adapter.lora import check_tensors, read_tensors
from blora.adapter.presence import ADVICE
from blora.base_model import BaseModel
from blora.config import AdapterConfig, CompanionConfig
from blora.decision.familiarity import MOST_BYTES, Familiarity, familiarity_shapes, stored_bytes
from blora.disk.files import TensorsFile
from blora.errors import AdapterError
from blora.posterior.decision_head import DecisionHead, head_shapes
from blora.posterior.inject import n_layers_of

__all__ = ["read_familiarity", "read_head"]


def read_head(path: Path, config: AdapterConfig, base: BaseModel) -> DecisionHead:
    """Return the head in a file of an adapter that has one.

    Raises:
        AdapterError: if it does not fit the settings or the base model, or its numbers make no head.
    """
    head = config.head
    assert head is not None  # the caller has checked it
    if head.depths[-1] > (n_layers := n_layers_of(base.model)):
        raise AdapterError(f"got a head that reads at layer {head.depths[-1]}, expected at most {n_layers}; {ADVICE}")
    if head.companion is not None and base.companion is not None:
        _check_companion(head.companion, base.companion)
    stored = _stored(path, head_shapes(head, config.prompt))
    tensors = {name: tensor.float() for name, tensor in stored.items() if name != "grams"}
    _check_positive("head", tensors, ("scale", "prompt_scale", "count_scale"))
    if "grams" in stored:
        tensors["grams"] = _rising(stored["grams"])
    return DecisionHead(head, **tensors)


def _rising(grams: Tensor) -> Tensor:
    """Return the n-grams of a head, which are found by bisection."""
    if not bool((grams[1:] > grams[:-1]).all()):
        raise AdapterError(f"got a head whose n-grams are in no order, expected a rising one; {ADVICE}")
    return grams


def _check_companion(reads: CompanionConfig, companion: BaseModel) -> None:
    """Raise an error if a head reads states of a companion that it does not have."""
    n_layers, width = n_layers_of(companion.model), companion.model.config.get_text_config().hidden_size
    if reads.depths[-1] > n_layers or reads.n_states != len(reads.depths) * width:
        raise AdapterError(
            f"got a head that reads {reads.n_states} states of the companion at layers {[*reads.depths]}, expected "
            f"{width} at each, and layers up to {n_layers}; {ADVICE}"
        )


def read_familiarity(path: Path, config: AdapterConfig) -> Familiarity:
    """Return the familiarity in a file of an adapter that has one.

    Raises:
        AdapterError: if it does not fit the settings or the head, or its numbers make no familiarity.
    """
    settings, head = config.familiarity, config.head
    assert settings is not None  # the caller has checked it
    assert head is not None  # a familiarity comes with one
    if settings.n_states != head.n_base_states:
        raise AdapterError(
            f"got a familiarity of {settings.n_states} states, expected {head.n_base_states}, the head's of the base "
            f"model; {ADVICE}"
        )
    if (size := stored_bytes(settings)) > MOST_BYTES:
        raise AdapterError(f"got a familiarity of {size} bytes, expected at most {MOST_BYTES}; {ADVICE}")
    found = _stored(path, familiarity_shapes(settings))
    of_choices = ("choice_scale", "choice_variances", "choice_residual")
    _check_positive("familiarity", found, ("scale", "variances", "residual", "spread", *of_choices))
    return Familiarity.of(settings, found)


def _stored(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors of a file, which must have exactly these shapes."""
    file = TensorsFile(path, advice=ADVICE)
    check_tensors(file, shapes.items())
    kinds = {"grams": torch.int32}
    expected = {n: torch.empty(shape, dtype=kinds.get(n, torch.float32), device="meta") for n, shape in shapes.items()}
    return read_tensors(file, expected)


def _check_positive(what: str, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    for name in names:
        if name in tensors and not bool((tensors[name] > 0).all()):
            raise AdapterError(f"got a {what} whose {name} is not positive; {ADVICE}")
