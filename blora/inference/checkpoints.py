"""Where a computation may be interrupted: between forward passes, between the parts of a layer, within the output head.

Whoever computes for others binds a function to the running thread, which is then called at every checkpoint. It may
take its time, and what it raises ends the computation.
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
