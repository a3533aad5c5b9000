import pytest

from blora.config.checks import require
from blora.errors import ConfigError


def test_what_meets_the_condition_passes_and_what_does_not_is_told() -> None:
    require(True, "rank = 8", "at least 1")
    with pytest.raises(ConfigError, match="^got rank = 0, expected at least 1$"):
        require(False, "rank = 0", "at least 1")
