"""Argument types that the sub-commands share."""

from argparse import ArgumentTypeError

__all__ = ["positive"]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return number
