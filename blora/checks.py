"""The words in which a setting or a record that makes no sense is refused."""

from blora.errors import ConfigError

__all__ = ["require"]


def require(condition: bool, got: str, expected: str) -> None:
    """Passes what meets a condition.

    Args:
        condition: whether it does.
        got: what was found, for the message.
        expected: what would have met it, for the message.

    Raises:
        ConfigError: otherwise.
    """
    if not condition:
        raise ConfigError(f"got {got}, expected {expected}")
