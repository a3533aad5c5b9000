"""Where a computation may be interrupted: between forward passes, between the parts of a layer, within the output head.

Whoever computes for others binds a function to the running thread, which is then called at every checkpoint. It may
take its time, and what it raises ends the computation.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from blora.errors import BaseModelError
from blora.inference.fork import decoder_layers
from blora.posterior.layer import linear_shape

__all__ = ["between", "check_within", "checkpoint", "checkpoints"]

T = TypeVar("T")

_ACTIVE: ContextVar[Callable[[], None] | None] = ContextVar("blora_checkpoint", default=None)


@contextmanager
def checkpoints(call: Callable[[], None]) -> Iterator[None]:
    """Binds a function to the checkpoints of what is computed inside the block."""
    token = _ACTIVE.set(call)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def checkpoint() -> None:
    """Be one."""
    call = _ACTIVE.get()
    if call is not None:
        call()


def between(parts: Iterable[T]) -> Iterator[T]:
    """The same parts, with a checkpoint before each."""
    for part in parts:
        checkpoint()
        yield part


def check_within(model: PreTrainedModel) -> None:
    """Have every forward pass of a model meet checkpoints, before each part of a layer and each product within it.

    A model whose decoder layers cannot be told apart has none.
    """
    with suppress(BaseModelError):
        _, layers = decoder_layers(model)
        for layer in layers:
            products = (module for module in layer.modules() if linear_shape(module) is not None)
            for part in dict.fromkeys([*layer.children(), *products]):
                part.register_forward_pre_hook(_at)


def _at(module: nn.Module, args: object) -> None:
    checkpoint()
