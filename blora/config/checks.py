"""The check of settings and records, with one form for its message: got, expected."""

from blora.errors import ConfigError

__all__ = ["require"]


def require(condition: bool, got: str, expected: str) -> None:
    """Raise a ConfigError unless a condition holds.

    Args:
        condition: what must hold.
        got: what was found, for the message.
        expected: what would have passed, for the message.

    Raises:
        ConfigError: if the condition does not hold.
    """
    if not condition:
        raise ConfigError(f"got {got}, expected {expected}")
