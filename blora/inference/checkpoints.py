"""Checkpoints, at which a computation may be interrupted: between forward passes, parts of a layer, and head chunks.

A caller binds a function to the running thread, which is then called at every checkpoint. The function may block, and
an exception that it raises ends the computation.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["between", "checkpoint", "checkpoints"]

T = TypeVar("T")

_ACTIVE: ContextVar[Callable[[], None] | None] = ContextVar("blora_checkpoint", default=None)


@contextmanager
def checkpoints(call: Callable[[], None]) -> Iterator[None]:
    """Call a function at every checkpoint of the computations inside the block."""
    token = _ACTIVE.set(call)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def checkpoint() -> None:
    """Call the bound function, if there is one."""
    call = _ACTIVE.get()
    if call is not None:
        call()


def between(parts: Iterable[T]) -> Iterator[T]:
    """Yield the parts, with a checkpoint before each."""
    for part in parts:
        checkpoint()
        yield part
