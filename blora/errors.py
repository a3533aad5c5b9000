"""The exception hierarchy of `blora`.

BloraError
├── ConfigError      an invalid setting or flag
├── DataError        a row of a data set, named with its file and line
├── BaseModelError   a base model that cannot be loaded or used
├── AdapterError     an adapter directory that must not be served
│   └── NotCalibratedError  calibrated, but for other contents or another dtype
├── PromptError      a prompt or choice that cannot be turned into tokens
│   └── PromptTooLongError  more tokens than the model has positions
├── ShapeError       a tensor of the wrong shape
└── NumericalError   a factorisation that failed, or a number that is not finite

Every message states what was got, what was expected, and what to do.
"""

from functools import partial
from typing import Any

__all__ = [
    "AdapterError",
    "BaseModelError",
    "BloraError",
    "ConfigError",
    "DataError",
    "NotCalibratedError",
    "NumericalError",
    "PromptError",
    "PromptTooLongError",
    "ShapeError",
    "install_hint",
]


class BloraError(Exception):
    """Base class of every error that `blora` raises deliberately."""


class ConfigError(BloraError):
    """An invalid setting or flag."""


class DataError(BloraError):
    """A row of a data set that cannot be used, named with its file and line."""


class BaseModelError(BloraError):
    """A base model that cannot be loaded, or with which this library cannot score correctly."""


class AdapterError(BloraError):
    """An adapter directory that must not be served."""


class NotCalibratedError(AdapterError):
    """An adapter whose calibration is for other contents, or for a dtype other than the served one."""


class PromptError(BloraError):
    """A prompt or choice that cannot be turned into tokens.

    Attributes:
        param: the part of the question at fault: prompt, messages, choices or scoring.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy is made in another process, where `param` is needed too."""
        return partial(type(self), param=self.param), self.args, self.__dict__


class PromptTooLongError(PromptError):
    """A prompt with more tokens than the model has positions."""


class ShapeError(BloraError):
    """A tensor of the wrong shape."""


class NumericalError(BloraError):
    """A factorisation that failed, or a number that is not finite."""


def install_hint(extra: str) -> str:
    """Return the advice for a package that is missing; blora is on no package index, where anyone may take its name.

    Args:
        extra: the extra of blora that brings the package.
    """
    return f"install it with `pip install '.[{extra}]'` in a checkout of blora"
